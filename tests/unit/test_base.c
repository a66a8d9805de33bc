/* The base and the platform: text, errors, memory, bytes, CRC-32C, and what POSIX is asked for. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#include <dirent.h>
#include <dlfcn.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

/* ---- str ---- */

TEST(text_is_always_terminated_and_tells_when_it_was_cut) {
    char buf[8];
    opc__text t;
    opc__text_init(&t, buf, sizeof buf);
    opc__text_str(&t, "1234567");
    CHECK_STR(buf, "1234567");
    CHECK(!t.cut);
    opc__text_str(&t, "");
    CHECK(!t.cut);
    opc__text_str(&t, "8");
    CHECK_STR(buf, "1234567");
    CHECK(t.cut);
    opc__text_init(&t, buf, 1);
    opc__text_u64(&t, 5);
    CHECK_STR(buf, "");
    CHECK(t.cut);
}

TEST(numbers_are_written_at_both_ends_of_their_range) {
    char buf[64];
    opc__text t;
    opc__text_init(&t, buf, sizeof buf);
    opc__text_u64(&t, 0);
    opc__text_str(&t, " ");
    opc__text_u64(&t, UINT64_MAX);
    CHECK_STR(buf, "0 18446744073709551615");
    opc__text_init(&t, buf, sizeof buf);
    opc__text_i64(&t, INT64_MIN);
    opc__text_str(&t, " ");
    opc__text_i64(&t, -1);
    CHECK_STR(buf, "-9223372036854775808 -1");
}

TEST(numbers_are_read_up_to_the_limit_and_not_beyond) {
    uint64_t v = 7;
    CHECK(opc__str_u64("18446744073709551615", 20, UINT64_MAX, &v));
    CHECK(v == UINT64_MAX);
    CHECK(!opc__str_u64("18446744073709551616", 20, UINT64_MAX, &v));
    CHECK(!opc__str_u64("99999999999999999999", 20, UINT64_MAX, &v));
    CHECK(opc__str_u64("255", 3, 255, &v) && v == 255);
    CHECK(opc__str_u64("000255", 6, 255, &v) && v == 255);
    v = 7;
    CHECK(!opc__str_u64("256", 3, 255, &v));
    CHECK(!opc__str_u64("", 0, 255, &v));
    CHECK(!opc__str_u64("+1", 2, 255, &v));
    CHECK(!opc__str_u64("-0", 2, 255, &v));
    CHECK(!opc__str_u64("1 ", 2, 255, &v));
    CHECK_EQ(v, 7); /* written only on success */
}

TEST(a_key_hash_is_64_lower_case_digits_and_nothing_else) {
    char text[66];
    uint8_t hash[32], back[32];
    char out[65];
    size_t i;
    for (i = 0; i < 32; i++) hash[i] = (uint8_t)(i * 8 + 5);
    opc__str_hash_write(hash, out);
    CHECK_EQ(strlen(out), 64);
    CHECK(opc__str_hash_parse(out, 64, back));
    CHECK(memcmp(hash, back, 32) == 0);
    CHECK(!opc__str_hash_parse(out, 63, back));
    memcpy(text, out, 64);
    text[64] = '0';
    CHECK(!opc__str_hash_parse(text, 65, back));
    for (i = 0; i < 64; i++) {
        static const char bad[] = {'g', 'A', 'F', ' ', '/', ':', '`', 0, '\n'};
        size_t k;
        for (k = 0; k < sizeof bad; k++) {
            memcpy(text, out, 64);
            text[i] = bad[k];
            CHECK(!opc__str_hash_parse(text, 64, back));
        }
    }
}

TEST(comparison_in_constant_time_sees_every_bit) {
    uint8_t a[32], b[32];
    size_t i, bit;
    memset(a, 0x5a, sizeof a);
    CHECK(opc__str_equal_ct(a, a, 0));
    for (i = 0; i < sizeof a; i++) {
        for (bit = 0; bit < 8; bit++) {
            memcpy(b, a, sizeof a);
            CHECK(opc__str_equal_ct(a, b, sizeof a));
            b[i] = (uint8_t)(b[i] ^ (1u << bit));
            CHECK(!opc__str_equal_ct(a, b, sizeof a));
        }
    }
}

/* The definition of RFC 3629 by code point: encode, and see that exactly these are valid. */
static int utf8_by_definition(const uint8_t *p, size_t n) {
    uint32_t c;
    if (n == 1) return p[0] < 0x80;
    if (n == 2) {
        if ((p[0] & 0xe0) != 0xc0 || (p[1] & 0xc0) != 0x80) return 0;
        c = ((uint32_t)(p[0] & 31u) << 6) | (p[1] & 63u);
        return c >= 0x80;
    }
    if (n == 3) {
        if ((p[0] & 0xf0) != 0xe0 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80) return 0;
        c = ((uint32_t)(p[0] & 15u) << 12) | ((uint32_t)(p[1] & 63u) << 6) | (p[2] & 63u);
        return c >= 0x800 && (c < 0xd800 || c > 0xdfff);
    }
    if ((p[0] & 0xf8) != 0xf0 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 ||
        (p[3] & 0xc0) != 0x80) {
        return 0;
    }
    c = ((uint32_t)(p[0] & 7u) << 18) | ((uint32_t)(p[1] & 63u) << 12) |
        ((uint32_t)(p[2] & 63u) << 6) | (p[3] & 63u);
    return c >= 0x10000 && c <= 0x10ffff;
}

TEST(utf8_is_what_rfc_3629_says_for_every_character_of_one_to_four_bytes) {
    unsigned a, b;
    int bad = 0;
    for (a = 0; a < 256; a++) {
        uint8_t p[4];
        p[0] = (uint8_t)a;
        bad += opc__str_utf8_valid(p, 1) != utf8_by_definition(p, 1);
        for (b = 0; b < 256; b++) {
            p[1] = (uint8_t)b;
            if (a >= 0x80) bad += opc__str_utf8_valid(p, 2) != utf8_by_definition(p, 2);
            p[2] = 0x80;
            if (a >= 0xe0) bad += opc__str_utf8_valid(p, 3) != utf8_by_definition(p, 3);
            p[2] = 0xc0;
            if (a >= 0xe0) bad += opc__str_utf8_valid(p, 3) != utf8_by_definition(p, 3);
            p[2] = 0xbf;
            p[3] = 0xbf;
            if (a >= 0xf0) bad += opc__str_utf8_valid(p, 4) != utf8_by_definition(p, 4);
            p[3] = 0x7f;
            if (a >= 0xf0) bad += opc__str_utf8_valid(p, 4) != utf8_by_definition(p, 4);
        }
    }
    CHECK_EQ(bad, 0);
    CHECK(opc__str_utf8_valid(NULL, 0));
    CHECK(!opc__str_utf8_valid((const uint8_t *)"a\xf0\x9f\x98", 4)); /* cut */
    CHECK(!opc__str_utf8_valid((const uint8_t *)"a\xc3", 2));
}

/* ---- err ---- */

TEST(every_error_has_its_own_text_and_a_severity) {
    int code, other;
    for (code = 0; code > (int)OPCOMMS_E_LAST_; code--) {
        CHECK(strcmp(opcomms_err_text((opcomms_err)code), "unknown error") != 0);
        CHECK(opcomms_err_severity((opcomms_err)code) >= 0);
        CHECK(opcomms_err_severity((opcomms_err)code) <= 3);
        for (other = 0; other > code; other--) {
            CHECK(strcmp(opcomms_err_text((opcomms_err)code),
                         opcomms_err_text((opcomms_err)other)) != 0);
        }
    }
    CHECK_STR(opcomms_err_text(OPCOMMS_E_LAST_), "unknown error");
    CHECK_STR(opcomms_err_text((opcomms_err)1), "unknown error");
}

TEST(error_detail_carries_code_text_system_number_and_line) {
    opcomms_error e;
    char huge[400];
    memset(&e, 0xff, sizeof e);
    CHECK_EQ(opc__err_set(&e, OPCOMMS_E_IO, 5, "disk"), OPCOMMS_E_IO);
    CHECK_EQ(e.code, OPCOMMS_E_IO);
    CHECK_EQ(e.os_code, 5);
    CHECK_EQ(e.line, 0);
    CHECK_STR(e.text, "the operating system reported an error: disk (os error 5)");
    CHECK_EQ(opc__err_line(&e, OPCOMMS_E_SYNTAX, 12, "tab"), OPCOMMS_E_SYNTAX);
    CHECK_EQ(e.line, 12);
    CHECK_STR(e.text, "the text is not well formed: line 12: tab");
    CHECK_EQ(opc__err_set(NULL, OPCOMMS_E_FULL, 1, "x"), OPCOMMS_E_FULL);
    memset(huge, 'h', sizeof huge - 1);
    huge[sizeof huge - 1] = 0;
    (void)opc__err_set(&e, OPCOMMS_E_IO, 0, huge);
    CHECK_EQ(strlen(e.text), sizeof e.text - 1);
}

/* ---- mem ---- */

static size_t spy_live, spy_calls;
static uint8_t spy_or; /* of all bytes of the last block given back */
static int spy_fail;

static void *spy_alloc(void *user, size_t bytes) {
    (void)user;
    spy_calls++;
    if (spy_fail) return NULL;
    spy_live += bytes;
    return malloc(bytes);
}

static void spy_release(void *user, void *p, size_t bytes) {
    size_t i;
    (void)user;
    spy_or = 0;
    for (i = 0; i < bytes; i++) spy_or |= ((uint8_t *)p)[i];
    spy_live -= bytes;
    free(p);
}

static void spy_mem(opc__mem *m, size_t limit) {
    memset(m, 0, sizeof *m);
    m->alloc = spy_alloc;
    m->release = spy_release;
    m->limit = limit;
    spy_live = spy_calls = 0;
    spy_fail = 0;
}

TEST(memory_is_counted_zeroed_and_bounded) {
    opc__mem m;
    uint8_t *p, *q;
    size_t i, dirt = 0;
    spy_mem(&m, 100);
    p = (uint8_t *)opc__mem_alloc(&m, 60);
    CHECK(p != NULL);
    for (i = 0; i < 60; i++) dirt |= p[i];
    CHECK_EQ(dirt, 0);
    CHECK_EQ(m.used, 60);
    CHECK(opc__mem_alloc(&m, 41) == NULL);
    CHECK(opc__mem_alloc(&m, SIZE_MAX) == NULL);
    CHECK_EQ(spy_calls, 1); /* a request over the limit never reaches the caller's allocator */
    q = (uint8_t *)opc__mem_alloc(&m, 40);
    CHECK(q != NULL);
    spy_fail = 1;
    opc__mem_free(&m, q, 40);
    CHECK(opc__mem_alloc(&m, 10) == NULL);
    CHECK_EQ(m.used, 60); /* a failed allocation is not counted */
    opc__mem_free(&m, NULL, 0);
    opc__mem_free(&m, p, 60);
    CHECK_EQ(m.used, 0);
    CHECK_EQ(spy_live, 0);
}

TEST(count_times_size_does_not_wrap) {
    opc__mem m;
    spy_mem(&m, 0);
    CHECK(opc__mem_array(&m, SIZE_MAX / 2 + 1, 2) == NULL);
    CHECK(opc__mem_array(&m, 2, SIZE_MAX / 2 + 1) == NULL);
    CHECK(opc__mem_array(&m, 0, 8) == NULL);
    CHECK(opc__mem_array(&m, 8, 0) == NULL);
    CHECK_EQ(spy_calls, 0);
}

TEST(wiped_memory_is_zero_when_it_is_given_back) {
    opc__mem m;
    uint8_t *p;
    spy_mem(&m, 0);
    p = (uint8_t *)opc__mem_alloc(&m, 64);
    CHECK(p != NULL);
    if (p == NULL) return;
    memset(p, 0xff, 64);
    opc__mem_free_wiped(&m, p, 64);
    CHECK_EQ(spy_or, 0);
    p = (uint8_t *)opc__mem_alloc(&m, 64);
    CHECK(p != NULL);
    if (p == NULL) return;
    memset(p, 0xff, 64);
    opc__mem_free(&m, p, 64);
    CHECK_EQ(spy_or, 0xff); /* so the check above can fail */
}

/* ---- buf ---- */

TEST(integers_are_big_endian_and_survive_the_round_trip) {
    uint8_t b[15];
    static const uint8_t want[15] = {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08,
                                     0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f};
    opc__wr w;
    opc__rd r;
    opc__wr_init(&w, b, sizeof b);
    opc__wr_u8(&w, 0x01);
    opc__wr_u16(&w, 0x0203);
    opc__wr_u32(&w, 0x04050607u);
    opc__wr_u64(&w, ((uint64_t)0x08090a0bu << 32) | 0x0c0d0e0fu);
    CHECK(!w.full);
    CHECK_EQ(opc__wr_len(&w), 15);
    CHECK(memcmp(b, want, sizeof b) == 0);
    opc__rd_init(&r, b, sizeof b);
    CHECK_EQ(opc__rd_u8(&r), 0x01);
    CHECK_EQ(opc__rd_u16(&r), 0x0203);
    CHECK_EQ(opc__rd_u32(&r), 0x04050607);
    CHECK(opc__rd_u64(&r) == (((uint64_t)0x08090a0bu << 32) | 0x0c0d0e0fu));
    CHECK_EQ(opc__rd_left(&r), 0);
    CHECK(!r.bad);
    b[0] = 0xff;
    CHECK(opc__buf_be32(b) == 0xff020304u); /* the top bit is not a sign */
}

TEST(a_read_past_the_end_answers_zero_and_stays_bad) {
    static const uint8_t b[7] = {1, 2, 3, 4, 5, 6, 7};
    opc__rd r;
    opc__rd_init(&r, b, sizeof b);
    CHECK(opc__rd_u64(&r) == 0);
    CHECK(r.bad);
    CHECK_EQ(opc__rd_u8(&r), 0); /* there is a byte, but nothing is read any more */
    CHECK(opc__rd_bytes(&r, 1) == NULL);
    CHECK_EQ(opc__rd_left(&r), 7);
    opc__rd_init(&r, b, sizeof b);
    CHECK(opc__rd_bytes(&r, SIZE_MAX) == NULL);
    opc__rd_init(&r, b, 0);
    CHECK_EQ(opc__rd_u8(&r), 0);
    CHECK(r.bad);
}

TEST(a_write_past_the_end_writes_nothing_and_stays_full) {
    uint8_t b[4] = {9, 9, 9, 9};
    opc__wr w;
    opc__wr_init(&w, b, 3);
    opc__wr_u16(&w, 0x0101);
    opc__wr_u16(&w, 0x0202);
    CHECK(w.full);
    CHECK_EQ(opc__wr_room(&w), 0);
    opc__wr_u8(&w, 3); /* would fit, but the order of what was written would be lost */
    CHECK_EQ(opc__wr_len(&w), 2);
    CHECK_EQ(b[2], 9);
    CHECK_EQ(b[3], 9);
}

/* ---- crc ---- */

TEST(crc32c_gives_the_values_of_rfc_3720) {
    uint8_t b[32];
    size_t i;
    CHECK(opc__crc32c(0, "123456789", 9) == 0xe3069283u);
    CHECK(opc__crc32c(0, NULL, 0) == 0);
    memset(b, 0, sizeof b); /* B.4 of RFC 3720 from here */
    CHECK(opc__crc32c(0, b, 32) == 0x8a9136aau);
    memset(b, 0xff, sizeof b);
    CHECK(opc__crc32c(0, b, 32) == 0x62a8ab43u);
    for (i = 0; i < 32; i++) b[i] = (uint8_t)i;
    CHECK(opc__crc32c(0, b, 32) == 0x46dd794eu);
    for (i = 0; i < 32; i++) b[i] = (uint8_t)(31 - i);
    CHECK(opc__crc32c(0, b, 32) == 0x113fdb5cu);
}

TEST(crc_by_table_by_hardware_and_in_pieces_agree_at_every_length_and_alignment) {
    static uint8_t b[3600];
    size_t n, at, cut;
    unsigned seed = 1;
    int bad = 0;
    for (n = 0; n < sizeof b; n++) {
        seed = seed * 1103515245u + 12345u;
        b[n] = (uint8_t)(seed >> 16);
    }
    for (at = 0; at < 8; at++) {
        for (n = 0; n <= 3500; n += n < 420 ? 1 : 61) {
            uint32_t whole = opc__crc32c(0x1234u, b + at, n);
            bad += whole != ~opc__crc_soft(~(uint32_t)0x1234u, b + at, n);
            cut = n / 3;
            bad += whole != opc__crc32c(opc__crc32c(0x1234u, b + at, cut), b + at + cut, n - cut);
        }
    }
    CHECK_EQ(bad, 0);
}

/* ---- posix: files ---- */

static const opcomms_platform *plat;
static intptr_t dir = OPCOMMS_NO_HANDLE;
static char dir_path[] = "build/tests/base.XXXXXX";

static char *in_dir(char *buf, size_t cap, const char *name) {
    snprintf(buf, cap, "%s/%s", dir_path, name);
    return buf;
}

static void put_file(const char *name, const char *text) {
    char path[256];
    FILE *f = fopen(in_dir(path, sizeof path, name), "wb");
    CHECK(f != NULL);
    if (f == NULL) return;
    fputs(text, f);
    fclose(f);
}

TEST(a_new_file_is_private_whatever_the_umask) {
    intptr_t f = OPCOMMS_NO_HANDLE;
    int os = 0;
    char path[256];
    struct stat st;
    mode_t old = umask(0);
    CHECK_EQ(plat->file_open(NULL, dir, "mode", OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE, &f, &os),
             OPCOMMS_OK);
    umask(old);
    CHECK_EQ(stat(in_dir(path, sizeof path, "mode"), &st), 0);
    CHECK_EQ(st.st_mode & 07777, 0600);
    plat->file_close(NULL, f);
}

TEST(an_exclusive_file_is_never_an_old_one) {
    intptr_t f = OPCOMMS_NO_HANDLE;
    int os = 0;
    char path[256], target[256];
    uint32_t mode = OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE | OPCOMMS_FILE_EXCLUSIVE;
    put_file("old", "text");
    CHECK_EQ(plat->file_open(NULL, dir, "old", mode, &f, &os), OPCOMMS_E_IN_USE);
    CHECK_EQ(os, EEXIST);
    /* A link that points nowhere is not followed to create its target. */
    CHECK_EQ(symlink("target", in_dir(path, sizeof path, "dangling")), 0);
    CHECK_EQ(plat->file_open(NULL, dir, "dangling", mode, &f, &os), OPCOMMS_E_IN_USE);
    CHECK(access(in_dir(target, sizeof target, "target"), F_OK) != 0);
}

TEST(a_private_file_is_no_link_no_pipe_no_directory_and_no_stranger_s) {
    intptr_t f = OPCOMMS_NO_HANDLE;
    int os = 0;
    char path[256];
    uint32_t private_rw = OPCOMMS_FILE_WRITE | OPCOMMS_FILE_PRIVATE;
    put_file("real", "text");
    CHECK_EQ(symlink("real", in_dir(path, sizeof path, "link")), 0);
    CHECK_EQ(plat->file_open(NULL, dir, "link", private_rw, &f, &os), OPCOMMS_E_IO);
    CHECK_EQ(os, ELOOP);
    CHECK_EQ(plat->file_open(NULL, dir, "link", OPCOMMS_FILE_WRITE, &f, &os), OPCOMMS_OK);
    plat->file_close(NULL, f); /* an allow list, say, may be a link */
    CHECK_EQ(mkfifo(in_dir(path, sizeof path, "pipe"), 0600), 0);
    CHECK_EQ(plat->file_open(NULL, dir, "pipe", private_rw, &f, &os), OPCOMMS_E_IO);
    CHECK_EQ(plat->file_open(NULL, dir, "pipe", 0, &f, &os), OPCOMMS_E_IO); /* and does not hang */
    CHECK_EQ(mkdir(in_dir(path, sizeof path, "folder"), 0700), 0);
    CHECK_EQ(plat->file_open(NULL, dir, "folder", private_rw, &f, &os), OPCOMMS_E_IO);
    CHECK_EQ(plat->file_open(NULL, dir, "folder", 0, &f, &os), OPCOMMS_E_IO);
    CHECK_EQ(plat->file_open(NULL, dir, "absent", private_rw, &f, &os), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(plat->file_open(NULL, dir, "real", private_rw, &f, &os), OPCOMMS_OK);
    plat->file_close(NULL, f);
}

/* Whose file it is: only root can give one away, so another user's file is tried both ways. */
TEST(a_private_file_of_another_owner_is_refused) {
    char path[256];
    pid_t pid;
    int status = -1;
    put_file("owned", "text");
    CHECK_EQ(chmod(in_dir(path, sizeof path, "owned"), 0666), 0);
    if (geteuid() == 0) {
        intptr_t f = OPCOMMS_NO_HANDLE;
        int os = 0;
        CHECK_EQ(chown(path, 12345, (gid_t)-1), 0);
        CHECK_EQ(plat->file_open(NULL, dir, "owned", OPCOMMS_FILE_PRIVATE, &f, &os), OPCOMMS_E_IO);
        CHECK_EQ(os, EPERM);
        CHECK_EQ(plat->file_open(NULL, dir, "owned", 0, &f, &os), OPCOMMS_OK);
        plat->file_close(NULL, f);
        return;
    }
    pid = fork(); /* not root: the root directory's owner is somebody else, and so are its files */
    if (pid == 0) {
        intptr_t d = OPCOMMS_NO_HANDLE, f = OPCOMMS_NO_HANDLE;
        int os = 0, ok;
        ok = plat->dir_open(NULL, "/etc", &d, &os) == OPCOMMS_OK &&
             plat->file_open(NULL, d, "passwd", OPCOMMS_FILE_PRIVATE, &f, &os) == OPCOMMS_E_IO &&
             plat->file_open(NULL, d, "passwd", 0, &f, &os) == OPCOMMS_OK;
        _exit(ok ? 0 : 1);
    }
    CHECK(pid > 0);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
}

TEST(a_lock_keeps_out_the_same_process_and_another_until_it_is_closed) {
    intptr_t a = OPCOMMS_NO_HANDLE, b = OPCOMMS_NO_HANDLE;
    int os = 0, status = -1;
    uint32_t mode = OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE | OPCOMMS_FILE_PRIVATE;
    pid_t pid;
    CHECK_EQ(plat->file_open(NULL, dir, "lock", mode, &a, &os), OPCOMMS_OK);
    CHECK_EQ(plat->file_open(NULL, dir, "lock", mode, &b, &os), OPCOMMS_OK);
    CHECK_EQ(plat->file_lock(NULL, a, &os), OPCOMMS_OK);
    CHECK_EQ(plat->file_lock(NULL, b, &os), OPCOMMS_E_IN_USE);
    pid = fork();
    if (pid == 0) {
        intptr_t c = OPCOMMS_NO_HANDLE;
        int ok = plat->file_open(NULL, dir, "lock", mode, &c, &os) == OPCOMMS_OK &&
                 plat->file_lock(NULL, c, &os) == OPCOMMS_E_IN_USE;
        _exit(ok ? 0 : 1);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    plat->file_close(NULL, a);
    CHECK_EQ(plat->file_lock(NULL, b, &os), OPCOMMS_OK);
    plat->file_close(NULL, b);
}

TEST(reads_and_writes_are_at_offsets_and_end_short_at_the_end_of_the_file) {
    intptr_t f = OPCOMMS_NO_HANDLE;
    int os = 0;
    size_t n = 99;
    uint64_t size = 0;
    char buf[16];
    CHECK_EQ(plat->file_open(NULL, dir, "data", OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE, &f, &os),
             OPCOMMS_OK);
    CHECK_EQ(plat->file_write(NULL, f, 4, "efgh", 4, &n, &os), OPCOMMS_OK);
    CHECK_EQ(n, 4);
    CHECK_EQ(plat->file_write(NULL, f, 0, "abcd", 4, &n, &os), OPCOMMS_OK);
    CHECK_EQ(plat->file_size(NULL, f, &size, &os), OPCOMMS_OK);
    CHECK_EQ(size, 8);
    CHECK_EQ(plat->file_read(NULL, f, 6, buf, sizeof buf, &n, &os), OPCOMMS_OK);
    CHECK_EQ(n, 2);
    CHECK(memcmp(buf, "gh", 2) == 0);
    CHECK_EQ(plat->file_read(NULL, f, 8, buf, sizeof buf, &n, &os), OPCOMMS_OK);
    CHECK_EQ(n, 0);
    CHECK_EQ(plat->file_truncate(NULL, f, 3, &os), OPCOMMS_OK);
    CHECK_EQ(plat->file_size(NULL, f, &size, &os), OPCOMMS_OK);
    CHECK_EQ(size, 3);
    CHECK_EQ(plat->file_sync(NULL, f, &os), OPCOMMS_OK);
    CHECK_EQ(plat->dir_sync(NULL, dir, &os), OPCOMMS_OK);
    plat->file_close(NULL, f);
    CHECK_EQ(plat->file_open(NULL, dir, "data", 0, &f, &os), OPCOMMS_OK);
    CHECK(plat->file_write(NULL, f, 0, "x", 1, &n, &os) != OPCOMMS_OK); /* opened to read only */
    plat->file_close(NULL, f);
    CHECK_EQ(plat->file_rename(NULL, dir, "data", "data2", &os), OPCOMMS_OK);
    CHECK_EQ(plat->file_rename(NULL, dir, "data", "data3", &os), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(plat->file_remove(NULL, dir, "data2", &os), OPCOMMS_OK);
    CHECK_EQ(plat->file_remove(NULL, dir, "data2", &os), OPCOMMS_E_NOT_FOUND);
}

/* ---- plat: whole files over a platform with short reads and writes ---- */

static opcomms_platform weird;
static int weird_read_step, weird_write_step, weird_fail_sync, weird_fail_rename, weird_shrink;

static opcomms_err weird_read(void *user, intptr_t f, uint64_t at, void *buf, size_t len,
                              size_t *got, int *os) {
    if (weird_shrink) {
        *got = 0;
        return OPCOMMS_OK;
    }
    if (weird_read_step > 0 && len > (size_t)weird_read_step) len = (size_t)weird_read_step;
    return opc__posix_file_read(user, f, at, buf, len, got, os);
}

static opcomms_err weird_write(void *user, intptr_t f, uint64_t at, const void *buf, size_t len,
                               size_t *put, int *os) {
    if (weird_write_step < 0) {
        *put = 0;
        return OPCOMMS_OK;
    }
    if (weird_write_step > 0 && len > (size_t)weird_write_step) len = (size_t)weird_write_step;
    return opc__posix_file_write(user, f, at, buf, len, put, os);
}

static opcomms_err weird_sync(void *user, intptr_t f, int *os) {
    if (weird_fail_sync) {
        *os = EIO;
        return OPCOMMS_E_IO;
    }
    return opc__posix_file_sync(user, f, os);
}

static opcomms_err weird_rename(void *user, intptr_t d, const char *a, const char *b, int *os) {
    if (weird_fail_rename) {
        *os = EIO;
        return OPCOMMS_E_IO;
    }
    return opc__posix_file_rename(user, d, a, b, os);
}

static int holds(const char *path, const char *text) {
    char buf[256];
    size_t n;
    FILE *f = fopen(path, "rb");
    if (f == NULL) return 0;
    n = fread(buf, 1, sizeof buf - 1, f);
    buf[n] = 0;
    fclose(f);
    return strcmp(buf, text) == 0;
}

TEST(whole_files_survive_short_reads_and_short_writes) {
    char path[256], *text = NULL;
    size_t len = 0;
    opc__mem m;
    opcomms_error err;
    spy_mem(&m, 0);
    in_dir(path, sizeof path, "whole");
    weird_read_step = weird_write_step = 1;
    CHECK_EQ(opc__plat_write_file_new(&weird, path, "whole text", 10, &err), OPCOMMS_OK);
    CHECK_EQ(opc__plat_read_file(&weird, &m, path, 10, &text, &len, &err), OPCOMMS_OK);
    CHECK_EQ(len, 10);
    CHECK(text != NULL && strcmp(text, "whole text") == 0); /* with a NUL behind */
    opc__mem_free(&m, text, len + 1);
    CHECK_EQ(opc__plat_read_file(&weird, &m, path, 9, &text, &len, &err), OPCOMMS_E_LIMIT);
    weird_shrink = 1;
    CHECK_EQ(opc__plat_read_file(&weird, &m, path, 10, &text, &len, &err), OPCOMMS_E_IO);
    weird_shrink = 0;
    spy_fail = 1;
    CHECK_EQ(opc__plat_read_file(&weird, &m, path, 10, &text, &len, &err), OPCOMMS_E_NOMEM);
    CHECK_EQ(spy_live, 0);
    weird_read_step = weird_write_step = 0;
}

TEST(a_new_file_that_cannot_be_finished_leaves_nothing) {
    char path[256];
    opcomms_error err;
    in_dir(path, sizeof path, "unfinished");
    weird_fail_sync = 1;
    CHECK_EQ(opc__plat_write_file_new(&weird, path, "x", 1, &err), OPCOMMS_E_IO);
    CHECK_EQ(err.os_code, EIO);
    weird_fail_sync = 0;
    CHECK(access(path, F_OK) != 0);
    weird_write_step = -1; /* a write that takes nothing is a failure, not a loop */
    CHECK_EQ(opc__plat_write_file_new(&weird, path, "x", 1, &err), OPCOMMS_E_IO);
    weird_write_step = 0;
    CHECK(access(path, F_OK) != 0);
    CHECK_EQ(opc__plat_write_file_new(&weird, path, "x", 1, &err), OPCOMMS_OK);
    CHECK_EQ(opc__plat_write_file_new(&weird, path, "y", 1, &err), OPCOMMS_E_IN_USE);
    CHECK(holds(path, "x"));
}

TEST(a_replaced_file_is_the_old_one_or_the_new_one) {
    char path[256], tmp[300], target[256];
    opcomms_error err;
    in_dir(path, sizeof path, "list");
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    put_file("list", "old");
    weird_fail_sync = 1;
    CHECK_EQ(opc__plat_write_file_atomic(&weird, path, "new", 3, &err), OPCOMMS_E_IO);
    weird_fail_sync = 0;
    CHECK(holds(path, "old"));
    weird_fail_rename = 1;
    CHECK_EQ(opc__plat_write_file_atomic(&weird, path, "new", 3, &err), OPCOMMS_E_IO);
    weird_fail_rename = 0;
    CHECK(holds(path, "old"));
    CHECK(access(tmp, F_OK) != 0); /* a key that was not to be seen would stay there */
    put_file("list.tmp", "left by a crash");
    CHECK_EQ(opc__plat_write_file_atomic(&weird, path, "new", 3, &err), OPCOMMS_OK);
    CHECK(holds(path, "new"));
    CHECK(access(tmp, F_OK) != 0);
    /* A link in the temporary file's place is removed, not written through. */
    put_file("victim", "untouched");
    CHECK_EQ(symlink("victim", tmp), 0);
    CHECK_EQ(opc__plat_write_file_atomic(&weird, path, "newer", 5, &err), OPCOMMS_OK);
    CHECK(holds(path, "newer"));
    CHECK(holds(in_dir(target, sizeof target, "victim"), "untouched"));
}

TEST(paths_split_into_directory_and_name) {
    char d[8];
    const char *name = NULL;
    CHECK_EQ(opc__plat_split("a/b/c", d, sizeof d, &name), OPCOMMS_OK);
    CHECK_STR(d, "a/b");
    CHECK_STR(name, "c");
    CHECK_EQ(opc__plat_split("c", d, sizeof d, &name), OPCOMMS_OK);
    CHECK_STR(d, ".");
    CHECK_EQ(opc__plat_split("/c", d, sizeof d, &name), OPCOMMS_OK);
    CHECK_STR(d, "/");
    CHECK_EQ(opc__plat_split("", d, sizeof d, &name), OPCOMMS_E_INVAL);
    CHECK_EQ(opc__plat_split("a/", d, sizeof d, &name), OPCOMMS_E_INVAL);
    CHECK_EQ(opc__plat_split("1234567/c", d, sizeof d, &name), OPCOMMS_OK);
    CHECK_EQ(opc__plat_split("12345678/c", d, sizeof d, &name), OPCOMMS_E_INVAL);
}

/* ---- posix: clock, randomness, sockets ---- */

TEST(the_clock_never_goes_back_and_randomness_differs) {
    uint64_t a = plat->now_us(NULL), b = plat->now_us(NULL);
    uint8_t r[2][1000];
    size_t i, zeros = 0;
    CHECK(b >= a);
    CHECK(plat->wall_s(NULL) > 1700000000);
    memset(r, 0, sizeof r);
    CHECK_EQ(plat->random(NULL, r[0], sizeof r[0]), OPCOMMS_OK);
    CHECK_EQ(plat->random(NULL, r[1], sizeof r[1]), OPCOMMS_OK);
    CHECK(memcmp(r[0], r[1], sizeof r[0]) != 0);
    for (i = 0; i < sizeof r[0]; i++) zeros += r[0][i] == 0;
    CHECK(zeros < 50); /* the whole of it was filled: 4 are expected */
}

/* Bits of /proc/self/fdinfo/N: flags in octal; close-on-exec is 02000000 there. */
static int fd_has_cloexec(int fd) {
    char path[64], line[128];
    unsigned long flags = 0;
    int found = 0;
    FILE *f;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    f = fopen(path, "r");
    if (f == NULL) return fcntl(fd, F_GETFD) & FD_CLOEXEC; /* no /proc: ask for the flag itself */
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "flags: %lo", &flags) == 1) found = 1;
    }
    fclose(f);
    return found && (flags & 02000000ul) != 0;
}

typedef struct sockets {
    intptr_t listener, client, server;
    opcomms_address bound;
} sockets;

static int sockets_open(sockets *s, int family) {
    opcomms_address a, from;
    opcomms_pollfd fd;
    int os = 0;
    memset(&a, 0, sizeof a);
    memset(&fd, 0, sizeof fd);
    a.family = (uint8_t)family;
    if (family == 4) {
        a.ip[0] = 127;
        a.ip[3] = 1;
    } else {
        a.ip[15] = 1;
    }
    if (plat->tcp_listen(NULL, &a, &s->listener, &s->bound, &os) != OPCOMMS_OK) return 0;
    if (s->bound.port == 0 || s->bound.family != family) return 0;
    if (plat->tcp_accept(NULL, s->listener, &s->server, &from, &os) != OPCOMMS_E_AGAIN) return 0;
    if (plat->tcp_connect(NULL, &s->bound, &s->client, &os) != OPCOMMS_OK) return 0;
    fd.handle = s->client;
    fd.events = OPCOMMS_POLL_OUT;
    if (plat->wait(NULL, &fd, 1, 5000, &os) != OPCOMMS_OK || !(fd.revents & OPCOMMS_POLL_OUT))
        return 0;
    if (plat->tcp_connected(NULL, s->client, &os) != OPCOMMS_OK) return 0;
    fd.handle = s->listener;
    fd.events = OPCOMMS_POLL_IN;
    if (plat->wait(NULL, &fd, 1, 5000, &os) != OPCOMMS_OK || fd.revents == 0) return 0;
    if (plat->tcp_accept(NULL, s->listener, &s->server, &from, &os) != OPCOMMS_OK) return 0;
    return from.family == family && memcmp(from.ip, a.ip, 16) == 0 && from.port != 0;
}

static void sockets_close(sockets *s) {
    plat->sock_close(NULL, s->listener);
    plat->sock_close(NULL, s->client);
    plat->sock_close(NULL, s->server);
}

TEST(every_descriptor_is_closed_on_exec_never_blocks_and_sends_at_once) {
    intptr_t wake[2], file = OPCOMMS_NO_HANDLE, d = OPCOMMS_NO_HANDLE;
    int os = 0, fds[8], i, nodelay = 0;
    socklen_t len = (socklen_t)sizeof nodelay;
    sockets s;
    memset(&s, 0, sizeof s);
    CHECK(sockets_open(&s, 4));
    CHECK_EQ(plat->wake_open(NULL, wake, &os), OPCOMMS_OK);
    CHECK_EQ(
        plat->file_open(NULL, dir, "flags", OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE, &file, &os),
        OPCOMMS_OK);
    CHECK_EQ(plat->dir_open(NULL, dir_path, &d, &os), OPCOMMS_OK);
    fds[0] = (int)s.listener;
    fds[1] = (int)s.client;
    fds[2] = (int)s.server;
    fds[3] = (int)wake[0];
    fds[4] = (int)wake[1];
    fds[5] = (int)file;
    fds[6] = (int)d;
    fds[7] = (int)dir;
    for (i = 0; i < 8; i++) CHECK(fd_has_cloexec(fds[i]));
    for (i = 0; i < 5; i++) CHECK(fcntl(fds[i], F_GETFL) & O_NONBLOCK);
    for (i = 1; i < 3; i++) {
        CHECK_EQ(getsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &nodelay, &len), 0);
        CHECK(nodelay != 0);
    }
    CHECK(!fd_has_cloexec(1)); /* so the check above can fail */
    plat->file_close(NULL, file);
    plat->dir_close(NULL, d);
    plat->wake_close(NULL, wake);
    sockets_close(&s);
}

TEST(ipv6_works_like_ipv4) {
    sockets s;
    memset(&s, 0, sizeof s);
    CHECK(sockets_open(&s, 6));
    sockets_close(&s);
}

TEST(a_port_in_use_is_told_and_so_is_a_port_nobody_listens_on) {
    opcomms_address other;
    intptr_t sock = OPCOMMS_NO_HANDLE;
    int os = 0;
    opcomms_err rc;
    sockets s;
    memset(&s, 0, sizeof s);
    CHECK(sockets_open(&s, 4));
    CHECK_EQ(plat->tcp_listen(NULL, &s.bound, &sock, &other, &os), OPCOMMS_E_IN_USE);
    CHECK_EQ(os, EADDRINUSE);
    sockets_close(&s);
    rc = plat->tcp_connect(NULL, &s.bound, &sock, &os);
    if (rc == OPCOMMS_OK) { /* under way: the refusal comes with the event */
        opcomms_pollfd fd;
        memset(&fd, 0, sizeof fd);
        fd.handle = sock;
        fd.events = OPCOMMS_POLL_OUT;
        CHECK_EQ(plat->wait(NULL, &fd, 1, 5000, &os), OPCOMMS_OK);
        CHECK(fd.revents != 0);
        rc = plat->tcp_connected(NULL, sock, &os);
        plat->sock_close(NULL, sock);
    }
    CHECK_EQ(rc, OPCOMMS_E_CONNECT);
    CHECK_EQ(os, ECONNREFUSED);
}

TEST(sending_to_a_peer_that_is_gone_is_an_error_and_not_a_signal) {
    struct sigaction old, def;
    sockets s;
    opcomms_err rc = OPCOMMS_OK;
    int os = 0, i;
    memset(&s, 0, sizeof s);
    memset(&def, 0, sizeof def);
    def.sa_handler = SIG_DFL;
    sigaction(SIGPIPE, &def, &old);
    CHECK(sockets_open(&s, 4));
    plat->sock_shutdown(NULL, s.client, 0);
    for (i = 0; i < 3 && rc == OPCOMMS_OK; i++) {
        size_t put = 0;
        rc = plat->sock_send(NULL, s.client, "x", 1, &put, &os); /* SIGPIPE would end the program */
    }
    CHECK_EQ(rc, OPCOMMS_E_CLOSED);
    CHECK_EQ(os, EPIPE);
    sigaction(SIGPIPE, &old, NULL);
    sockets_close(&s);
}

TEST(the_end_of_a_stream_is_zero_bytes_and_silence_is_again) {
    sockets s;
    char buf[8];
    size_t n = 99;
    int os = 0;
    opcomms_pollfd fd;
    memset(&s, 0, sizeof s);
    memset(&fd, 0, sizeof fd);
    CHECK(sockets_open(&s, 4));
    CHECK_EQ(plat->sock_recv(NULL, s.server, buf, sizeof buf, &n, &os), OPCOMMS_E_AGAIN);
    CHECK_EQ(plat->sock_send(NULL, s.client, "hi", 2, &n, &os), OPCOMMS_OK);
    plat->sock_shutdown(NULL, s.client, 0);
    fd.handle = s.server;
    fd.events = OPCOMMS_POLL_IN;
    CHECK_EQ(plat->wait(NULL, &fd, 1, 5000, &os), OPCOMMS_OK);
    CHECK(fd.revents & OPCOMMS_POLL_IN);
    CHECK_EQ(plat->sock_recv(NULL, s.server, buf, sizeof buf, &n, &os), OPCOMMS_OK);
    CHECK_EQ(n, 2);
    CHECK_EQ(plat->wait(NULL, &fd, 1, 5000, &os), OPCOMMS_OK);
    CHECK_EQ(plat->sock_recv(NULL, s.server, buf, sizeof buf, &n, &os), OPCOMMS_OK);
    CHECK_EQ(n, 0);
    sockets_close(&s);
}

TEST(a_wake_ends_a_wait_and_any_number_of_wakes_is_drained_at_once) {
    intptr_t wake[2];
    opcomms_pollfd fd;
    int os = 0, i;
    memset(&fd, 0, sizeof fd);
    CHECK_EQ(plat->wake_open(NULL, wake, &os), OPCOMMS_OK);
    fd.handle = wake[0];
    fd.events = OPCOMMS_POLL_IN;
    CHECK_EQ(plat->wait(NULL, &fd, 1, 0, &os), OPCOMMS_OK);
    CHECK_EQ(fd.revents, 0);
    for (i = 0; i < 100000; i++) plat->wake_signal(NULL, wake); /* more than a pipe holds */
    CHECK_EQ(plat->wait(NULL, &fd, 1, -1, &os), OPCOMMS_OK);
    CHECK_EQ(fd.revents, OPCOMMS_POLL_IN);
    plat->wake_drain(NULL, wake);
    CHECK_EQ(plat->wait(NULL, &fd, 1, 0, &os), OPCOMMS_OK);
    CHECK_EQ(fd.revents, 0);
    plat->wake_close(NULL, wake);
    {
        static opcomms_pollfd many[OPC__POSIX_POLL_MAX + 1];
        CHECK_EQ(plat->wait(NULL, many, OPC__POSIX_POLL_MAX + 1, 0, &os), OPCOMMS_E_LIMIT);
    }
}

/* ---- EINTR: the system calls the platform uses, failing with it every other time ---- */

static int interrupt; /* the next `interrupt` calls below fail with EINTR */
static int interrupted;

static int should_fail(void) {
    if (interrupt <= 0) return 0;
    interrupt--;
    interrupted++;
    errno = EINTR;
    return 1;
}

/* They stand before the C library's in this program; the real ones are called through it. */
#define REAL(type, name, args) type(*real) args = (type(*) args)dlsym(RTLD_NEXT, name)
ssize_t pread(int fd, void *buf, size_t n, off_t at) {
    REAL(ssize_t, "pread", (int, void *, size_t, off_t));
    return should_fail() ? -1 : real(fd, buf, n, at);
}
ssize_t pwrite(int fd, const void *buf, size_t n, off_t at) {
    REAL(ssize_t, "pwrite", (int, const void *, size_t, off_t));
    return should_fail() ? -1 : real(fd, buf, n, at);
}
ssize_t recv(int fd, void *buf, size_t n, int flags) {
    REAL(ssize_t, "recv", (int, void *, size_t, int));
    return should_fail() ? -1 : real(fd, buf, n, flags);
}
ssize_t send(int fd, const void *buf, size_t n, int flags) {
    REAL(ssize_t, "send", (int, const void *, size_t, int));
    return should_fail() ? -1 : real(fd, buf, n, flags);
}
int poll(struct pollfd *fds, nfds_t n, int ms) {
    REAL(int, "poll", (struct pollfd *, nfds_t, int));
    return should_fail() ? -1 : real(fds, n, ms);
}
int ftruncate(int fd, off_t n) {
    REAL(int, "ftruncate", (int, off_t));
    return should_fail() ? -1 : real(fd, n);
}
int accept4(int fd, struct sockaddr *a, socklen_t *len, int flags) {
    REAL(int, "accept4", (int, struct sockaddr *, socklen_t *, int));
    return should_fail() ? -1 : real(fd, a, len, flags);
}
ssize_t getrandom(void *buf, size_t n, unsigned flags) {
    REAL(ssize_t, "getrandom", (void *, size_t, unsigned));
    return should_fail() ? -1 : real(buf, n, flags);
}

TEST(an_interrupted_call_is_repeated_and_an_interrupted_wait_is_a_short_one) {
    intptr_t f = OPCOMMS_NO_HANDLE;
    int os = 0;
    size_t n = 0;
    char buf[8];
    uint8_t random[600];
    opcomms_address from;
    opcomms_pollfd fd;
    intptr_t sock = OPCOMMS_NO_HANDLE;
    sockets s;
    memset(&s, 0, sizeof s);
    memset(&fd, 0, sizeof fd);
    CHECK_EQ(plat->file_open(NULL, dir, "intr", OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE, &f, &os),
             OPCOMMS_OK);
    interrupted = 0;
    interrupt = 3;
    CHECK_EQ(plat->file_write(NULL, f, 0, "hello", 5, &n, &os), OPCOMMS_OK);
    CHECK_EQ(n, 5);
    interrupt = 3;
    CHECK_EQ(plat->file_read(NULL, f, 0, buf, sizeof buf, &n, &os), OPCOMMS_OK);
    CHECK_EQ(n, 5);
    interrupt = 3;
    CHECK_EQ(plat->file_truncate(NULL, f, 1, &os), OPCOMMS_OK);
    plat->file_close(NULL, f);
    CHECK(sockets_open(&s, 4));
    interrupt = 3;
    CHECK_EQ(plat->tcp_accept(NULL, s.listener, &sock, &from, &os), OPCOMMS_E_AGAIN);
    interrupt = 3;
    CHECK_EQ(plat->sock_send(NULL, s.client, "hi", 2, &n, &os), OPCOMMS_OK);
    CHECK_EQ(n, 2);
    fd.handle = s.server;
    fd.events = OPCOMMS_POLL_IN;
    CHECK_EQ(plat->wait(NULL, &fd, 1, 5000, &os), OPCOMMS_OK);
    interrupt = 3;
    CHECK_EQ(plat->sock_recv(NULL, s.server, buf, sizeof buf, &n, &os), OPCOMMS_OK);
    CHECK_EQ(n, 2);
    interrupt = 1;
    fd.revents = 77;
    CHECK_EQ(plat->wait(NULL, &fd, 1, 5000, &os), OPCOMMS_OK);
    CHECK_EQ(fd.revents, 0);
    interrupt = 3;
    CHECK_EQ(plat->random(NULL, random, sizeof random), OPCOMMS_OK);
    CHECK_EQ(interrupt, 0);
    CHECK_EQ(interrupted, 22); /* all of the above were really interrupted */
    sockets_close(&s);
}

/* ---- thread ---- */

typedef struct counter {
    opc__mutex lock;
    opc__cond changed;
    int n;
} counter;

static void *count_up(void *arg) {
    counter *c = (counter *)arg;
    int i;
    for (i = 0; i < 1000; i++) {
        opc__mutex_lock(&c->lock);
        c->n++;
        opc__cond_all(&c->changed);
        opc__mutex_unlock(&c->lock);
    }
    return NULL;
}

TEST(threads_count_together_and_a_wait_ends_by_signal_or_by_time) {
    opc__thread t[2];
    counter c;
    uint64_t before;
    memset(&c, 0, sizeof c);
    memset(t, 0, sizeof t);
    CHECK(opc__mutex_init(&c.lock));
    CHECK(opc__cond_init(&c.changed));
    CHECK(opc__thread_start(&t[0], count_up, &c));
    CHECK(opc__thread_start(&t[1], count_up, &c));
    opc__mutex_lock(&c.lock);
    while (c.n < 2000) opc__cond_wait(&c.changed, &c.lock, 20000000u);
    before = plat->now_us(NULL);
    opc__cond_wait(&c.changed, &c.lock, 1000u);
    CHECK(plat->now_us(NULL) - before < 10000000u);
    opc__mutex_unlock(&c.lock);
    opc__thread_join(&t[0]);
    opc__thread_join(&t[1]);
    opc__thread_join(&t[1]); /* a second join does nothing */
    CHECK_EQ(c.n, 2000);
    opc__cond_destroy(&c.changed);
    opc__mutex_destroy(&c.lock);
}

int main(void) {
    int os = 0;
    char command[128];
    plat = opc__plat_default();
    if (mkdtemp(dir_path) == NULL || plat->dir_open(NULL, dir_path, &dir, &os) != OPCOMMS_OK) {
        printf("no directory\n0 passed, 1 failed\n");
        return 1;
    }
    weird = *plat;
    weird.file_read = weird_read;
    weird.file_write = weird_write;
    weird.file_sync = weird_sync;
    weird.file_rename = weird_rename;
    RUN(text_is_always_terminated_and_tells_when_it_was_cut);
    RUN(numbers_are_written_at_both_ends_of_their_range);
    RUN(numbers_are_read_up_to_the_limit_and_not_beyond);
    RUN(a_key_hash_is_64_lower_case_digits_and_nothing_else);
    RUN(comparison_in_constant_time_sees_every_bit);
    RUN(utf8_is_what_rfc_3629_says_for_every_character_of_one_to_four_bytes);
    RUN(every_error_has_its_own_text_and_a_severity);
    RUN(error_detail_carries_code_text_system_number_and_line);
    RUN(memory_is_counted_zeroed_and_bounded);
    RUN(count_times_size_does_not_wrap);
    RUN(wiped_memory_is_zero_when_it_is_given_back);
    RUN(integers_are_big_endian_and_survive_the_round_trip);
    RUN(a_read_past_the_end_answers_zero_and_stays_bad);
    RUN(a_write_past_the_end_writes_nothing_and_stays_full);
    RUN(crc32c_gives_the_values_of_rfc_3720);
    RUN(crc_by_table_by_hardware_and_in_pieces_agree_at_every_length_and_alignment);
    RUN(a_new_file_is_private_whatever_the_umask);
    RUN(an_exclusive_file_is_never_an_old_one);
    RUN(a_private_file_is_no_link_no_pipe_no_directory_and_no_stranger_s);
    RUN(a_private_file_of_another_owner_is_refused);
    RUN(a_lock_keeps_out_the_same_process_and_another_until_it_is_closed);
    RUN(reads_and_writes_are_at_offsets_and_end_short_at_the_end_of_the_file);
    RUN(whole_files_survive_short_reads_and_short_writes);
    RUN(a_new_file_that_cannot_be_finished_leaves_nothing);
    RUN(a_replaced_file_is_the_old_one_or_the_new_one);
    RUN(paths_split_into_directory_and_name);
    RUN(the_clock_never_goes_back_and_randomness_differs);
    RUN(every_descriptor_is_closed_on_exec_never_blocks_and_sends_at_once);
    RUN(ipv6_works_like_ipv4);
    RUN(a_port_in_use_is_told_and_so_is_a_port_nobody_listens_on);
    RUN(sending_to_a_peer_that_is_gone_is_an_error_and_not_a_signal);
    RUN(the_end_of_a_stream_is_zero_bytes_and_silence_is_again);
    RUN(a_wake_ends_a_wait_and_any_number_of_wakes_is_drained_at_once);
    RUN(an_interrupted_call_is_repeated_and_an_interrupted_wait_is_a_short_one);
    RUN(threads_count_together_and_a_wait_ends_by_signal_or_by_time);
    plat->dir_close(NULL, dir);
    snprintf(command, sizeof command, "rm -rf '%s'", dir_path);
    if (system(command) != 0) printf("could not clean up\n");
    return test_end();
}
