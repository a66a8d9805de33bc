/* The allow list's YAML: a bad file names a line that exists and changes nothing; a good one, saved
   and loaded, is the same list, and saving that writes the same text. */
#include "fuzz_list.h"

static void fuzz_allow(const uint8_t *data, size_t size) {
    opcomms_allow_list *l = NULL, *m = NULL;
    fuzz_memory memory;
    opcomms_allocator alloc;
    opcomms_error err;
    uint8_t *text = fuzz_exact(data, size);
    opcomms_err rc;
    memset(&memory, 0, sizeof memory);
    alloc.alloc = fuzz_alloc;
    alloc.release = fuzz_release;
    alloc.user = &memory;
    fuzz_disk_clear();
    FUZZ_CHECK(opcomms_allow_list_new(&alloc, &l) == OPCOMMS_OK);
    FUZZ_CHECK(opcomms_allow_list_load_text(l, "old: 1.2.3.4", 12, &err) == OPCOMMS_OK);
    rc = opcomms_allow_list_load_text(l, (const char *)text, size, &err);
    /* a rule costs at least two characters of text, and not more than this */
    FUZZ_CHECK(memory.peak <= 65536 + 4 * size * sizeof(opc__rule));
    fuzz_list_valid(&l->l.now);
    if (rc != OPCOMMS_OK) {
        fuzz_list_error(&err, rc, data, size);
        FUZZ_CHECK(opcomms_allow_list_count(l) == 1);
        FUZZ_CHECK(opcomms_allow_list_is_allowed(l, "old", "1.2.3.4"));
    } else {
        fuzz_buf first;
        memset(&first, 0, sizeof first);
        FUZZ_CHECK(opcomms_allow_list_save(l, "a/list", &err) == OPCOMMS_OK);
        fuzz_put(&first, fuzz_find("list")->data.p, fuzz_find("list")->data.len);
        FUZZ_CHECK(opcomms_allow_list_new(&alloc, &m) == OPCOMMS_OK);
        FUZZ_CHECK(opcomms_allow_list_load(m, "a/list", &err) == OPCOMMS_OK);
        FUZZ_CHECK(fuzz_list_equal(&l->l.now, &m->l.now));
        FUZZ_CHECK(opcomms_allow_list_save(m, "a/list", &err) == OPCOMMS_OK);
        FUZZ_CHECK(fuzz_same(&first, &fuzz_find("list")->data));
        FUZZ_CHECK(opcomms_allow_list_reload(m, &err) == OPCOMMS_OK);
        FUZZ_CHECK(fuzz_list_equal(&l->l.now, &m->l.now));
        FUZZ_CHECK(fuzz_find("list.tmp") == NULL);
        fuzz_free(&first);
        opcomms_allow_list_release(m);
    }
    opcomms_allow_list_release(l);
    FUZZ_CHECK(memory.now == 0);
    fuzz_disk_clear();
    free(text);
}

FUZZ_TARGET(fuzz_allow)
