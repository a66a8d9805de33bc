/* The routing table's YAML: as the allow list's; and every rule read lets through what it says. */
#include "fuzz_list.h"

static void fuzz_route_used(opcomms_routing_table *t) {
    uint32_t i;
    for (i = 0; i < t->l.now.count; i++) {
        const opc__rule *r = &t->l.now.rule[i];
        opcomms_identifier from, to;
        FUZZ_CHECK(opc__id_parse(r->a, r->a_len, 1, &from));
        if (r->b == NULL) continue;
        FUZZ_CHECK(opc__id_parse(r->b, r->b_len, 1, &to));
        if (from.id == OPCOMMS_ANY_ID) from.id = 200;
        if (to.id == OPCOMMS_ANY_ID) to.id = 0;
        FUZZ_CHECK(opcomms_routing_table_can_route(t, &from, &to));
    }
}

static void fuzz_route(const uint8_t *data, size_t size) {
    opcomms_routing_table *t = NULL, *u = NULL;
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
    FUZZ_CHECK(opcomms_routing_table_new(&alloc, &t) == OPCOMMS_OK);
    FUZZ_CHECK(opcomms_routing_table_add(t, "old:1", "old:~") == OPCOMMS_OK);
    rc = opcomms_routing_table_load_text(t, (const char *)text, size, &err);
    FUZZ_CHECK(memory.peak <= 65536 + 4 * size * sizeof(opc__rule));
    fuzz_list_valid(&t->l.now);
    if (rc != OPCOMMS_OK) {
        fuzz_list_error(&err, rc, data, size);
        FUZZ_CHECK(opcomms_routing_table_count(t) == 1);
    } else {
        fuzz_buf first;
        memset(&first, 0, sizeof first);
        FUZZ_CHECK(opcomms_routing_table_save(t, "a/table", &err) == OPCOMMS_OK);
        fuzz_put(&first, fuzz_find("table")->data.p, fuzz_find("table")->data.len);
        FUZZ_CHECK(opcomms_routing_table_new(&alloc, &u) == OPCOMMS_OK);
        FUZZ_CHECK(opcomms_routing_table_load(u, "a/table", &err) == OPCOMMS_OK);
        FUZZ_CHECK(fuzz_list_equal(&t->l.now, &u->l.now));
        FUZZ_CHECK(opcomms_routing_table_save(u, "a/table", &err) == OPCOMMS_OK);
        FUZZ_CHECK(fuzz_same(&first, &fuzz_find("table")->data));
        fuzz_free(&first);
        opcomms_routing_table_release(u);
        fuzz_route_used(t);
    }
    opcomms_routing_table_release(t);
    FUZZ_CHECK(memory.now == 0);
    fuzz_disk_clear();
    free(text);
}

FUZZ_TARGET(fuzz_route)
