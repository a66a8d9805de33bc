/* The log encrypted at rest: its cipher and its keys against the vectors of the RFCs; then crashes,
   damage, passwords, compaction and backup, as with a log in the clear. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "logworld.h"

static size_t unhex(const char *text, uint8_t *out) {
    size_t n = 0;
    for (; text[0] != 0; text += 2) {
        unsigned hi = (unsigned)(text[0] <= '9' ? text[0] - '0' : text[0] - 'a' + 10);
        unsigned lo = (unsigned)(text[1] <= '9' ? text[1] - '0' : text[1] - 'a' + 10);
        out[n++] = (uint8_t)(hi << 4 | lo);
    }
    return n;
}

TEST(the_cipher_is_that_of_rfc_8439_2_8_2) {
    static const char text[] =
        "Ladies and Gentlemen of the class of '99: If I could offer you only "
        "one tip for the future, sunscreen would be it.";
    uint8_t key[32], nonce[12], ad[12], want[114], p[114], tag[16], want_tag[16];
    opc__seal_cipher c[2];
    size_t i;
    for (i = 0; i < 32; i++) key[i] = (uint8_t)(0x80 + i);
    unhex("070000004041424344454647", nonce);
    unhex("50515253c0c1c2c3c4c5c6c7", ad);
    unhex("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69"
          "da92728b1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324"
          "e4fad675945585"
          "808b4831d7bc3ff4def08e4b7a9de576d26586cec64b6116", want);
    unhex("1ae10b594f09e26a7e902ecbd0600691", want_tag);
    opc__seal_cipher_init(&c[0]);
    c[1].stream = br_chacha20_ct_run; /* where there is no help from the processor */
    c[1].mac = br_poly1305_ctmul_run;
    for (i = 0; i < 2; i++) {
        memcpy(p, text, sizeof p);
        opc__seal_encrypt(&c[i], key, nonce, ad, sizeof ad, p, sizeof p, tag);
        CHECK(memcmp(p, want, sizeof p) == 0);
        CHECK(memcmp(tag, want_tag, sizeof tag) == 0);
        CHECK(opc__seal_decrypt(&c[i], key, nonce, ad, sizeof ad, p, sizeof p, tag));
        CHECK(memcmp(p, text, sizeof p) == 0);
        memcpy(p, want, sizeof p);
        tag[i] ^= 1;
        CHECK(!opc__seal_decrypt(&c[i], key, nonce, ad, sizeof ad, p, sizeof p, tag));
        CHECK_EQ(p[0] | p[57] | p[113], 0);
        tag[i] ^= 1;
        ad[i] ^= 1;
        memcpy(p, want, sizeof p);
        CHECK(!opc__seal_decrypt(&c[i], key, nonce, ad, sizeof ad, p, sizeof p, tag));
        ad[i] ^= 1;
    }
}

TEST(keys_are_derived_by_hkdf_of_rfc_5869_a_1_and_a_2) {
    uint8_t ikm[80], salt[80], info[80], out[82], want[82];
    size_t i;
    memset(ikm, 0x0b, 22);
    for (i = 0; i < 13; i++) salt[i] = (uint8_t)i;
    for (i = 0; i < 10; i++) info[i] = (uint8_t)(0xf0 + i);
    unhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
          want);
    opc__seal_hkdf(salt, 13, ikm, 22, info, 10, out, 42);
    CHECK(memcmp(out, want, 42) == 0);
    for (i = 0; i < 80; i++) ikm[i] = (uint8_t)i;
    for (i = 0; i < 80; i++) salt[i] = (uint8_t)(0x60 + i);
    for (i = 0; i < 80; i++) info[i] = (uint8_t)(0xb0 + i);
    unhex("b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac782"
          "7271cb41c65e"
          "590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87", want);
    opc__seal_hkdf(salt, 80, ikm, 80, info, 80, out, 82);
    CHECK(memcmp(out, want, 82) == 0);
}

TEST(a_wrapped_key_comes_out_by_the_same_secret_only_and_by_no_byte_changed) {
    static fdisk d;
    uint8_t secret[32], hash[32], key[32], out[32], w[OPC__SEAL_WRAPPED];
    opc__seal_cipher c;
    uint32_t iterations;
    size_t i;
    fd_init(&d, 1);
    opc__seal_cipher_init(&c);
    memset(secret, 3, sizeof secret);
    memset(hash, 4, sizeof hash);
    memset(key, 5, sizeof key);
    for (iterations = 0; iterations < 4; iterations += 3) {
        CHECK_EQ(opc__seal_wrap(&d.plat, &c, secret, 32, iterations, hash, key, w), OPCOMMS_OK);
        CHECK(opc__seal_wrap_known(w, 3));
        CHECK_EQ(opc__seal_wrap_known(w, 2), iterations == 0);
        CHECK_EQ(opc__seal_unwrap(&c, secret, 32, hash, w, out), OPCOMMS_OK);
        CHECK(memcmp(out, key, 32) == 0);
        CHECK_EQ(opc__seal_unwrap(&c, secret, 31, hash, w, out), OPCOMMS_E_PASSWORD);
        for (i = 0; i < sizeof w; i++) {
            w[i] ^= 4;
            if (i < 4 || (iterations > 0 && i < 6)) { /* 6: no more than a test has time for */
                CHECK(!opc__seal_wrap_known(w, 10000));
            } else {
                CHECK_EQ(opc__seal_unwrap(&c, secret, 32, hash, w, out), OPCOMMS_E_PASSWORD);
            }
            w[i] ^= 4;
        }
        hash[0] ^= 1;
        CHECK_EQ(opc__seal_unwrap(&c, secret, 32, hash, w, out), OPCOMMS_E_PASSWORD);
        hash[0] ^= 1;
    }
    fd_free(&d);
}

TEST(a_private_key_gives_one_secret_whatever_the_order_of_its_primes) {
    static opc__key k, other;
    uint8_t a[32], b[32], *p;
    size_t n;
    opc__key_builtin_ca(&k);
    opc__key_builtin_ca(&other);
    opc__seal_secret(&k, a);
    p = other.rsa.p;
    n = other.rsa.plen;
    other.rsa.p = other.rsa.q;
    other.rsa.plen = other.rsa.qlen;
    other.rsa.q = p;
    other.rsa.qlen = n;
    opc__seal_secret(&other, b);
    CHECK(memcmp(a, b, 32) == 0);
    other.rsa.p[9] ^= 1;
    opc__seal_secret(&other, b);
    CHECK(memcmp(a, b, 32) != 0);
}

/* ---- a log under a secret ---- */

static fdisk disk, copy, image;
static world w;
static found f;
static opcomms_error err;
static uint8_t key_a[32] = {1}, key_b[32] = {2};

/* A password that is a fixed text; NULL: nobody has one. */
static int tell_password(void *user, char *buf, size_t cap) {
    size_t n = user == NULL ? 0 : strlen((const char *)user);
    if (user == NULL || n > cap) return -1;
    memcpy(buf, user, n);
    return (int)n;
}

static opc__seal_ask ask_a, ask_b;

static void asks(void) {
    opc__seal_ask_init(&ask_a, tell_password, (void *)(uintptr_t) "first");
    opc__seal_ask_init(&ask_b, tell_password, (void *)(uintptr_t) "second");
}

static opc__log_secret under(int want, const uint8_t *key, const opc__seal_ask *password,
                             const opc__seal_ask *fresh) {
    opc__log_secret s;
    s.want = want;
    s.key = key;
    s.password = password;
    s.fresh = fresh;
    s.iterations = 2;
    return s;
}

static opc__log_secret by_key(void) { return under(OPC__LOG_BY_KEY, key_a, NULL, NULL); }

static fd_file *log_file(fdisk *d) { return fd_find(d, "peer.log"); }

static opcomms_err open_as(fdisk *d, opc__log_secret secret, opc__store **s) {
    opc__log_options o = log_options(d);
    o.secret = secret;
    return log_open_with(&o, s, &f, &err);
}

static int contains(const fd_file *file, const void *p, size_t n) {
    const uint8_t *at = file->cache, *end = file->cache + file->size - n;
    for (; at <= end; at++) {
        at = (const uint8_t *)memchr(at, ((const uint8_t *)p)[0], (size_t)(end - at) + 1);
        if (at == NULL) return 0;
        if (memcmp(at, p, n) == 0) return 1;
    }
    return 0;
}

/* The world's secrets: of senders, payloads, destinations, contexts, states. */
static int shows(const fd_file *file) {
    uint8_t p[32];
    int i;
    for (i = 0; i < w.n; i++) {
        memset(p, w.m[i].tag, sizeof p);
        if (contains(file, p, 16)) return 1;
        msg_fill(p, w.m[i].tag, 0, sizeof p);
        if (w.m[i].len >= 12 && contains(file, p, 12)) return 1;
    }
    memset(p, 3, sizeof p); /* of the note in world_group */
    return contains(file, p, 16) || contains(file, "destination", 4) ||
           contains(file, "what the caller", 6) || contains(file, "0100000000", 10);
}

static void begin(uint64_t seed, int durability, opc__log_secret secret) {
    fd_clear(&disk);
    world_init(&w, &disk, seed, durability);
    w.o.secret = secret;
    CHECK_EQ(world_open(&w), OPCOMMS_OK);
}

static void end(void) { world_close(&w); }

static void put(int what, uint64_t len) { CHECK_EQ(world_put_as(&w, what, len), OPCOMMS_OK); }

static void check_all(void) {
    int i, right;
    for (i = 0; i < w.n; i++) {
        if (w.m[i].acked || w.m[i].gone) continue;
        CHECK_EQ(msg_read(w.s, w.m[i].ref, w.m[i].tag, w.m[i].len, &right), OPCOMMS_OK);
        CHECK(right);
    }
}

static void compact(void) {
    uint64_t was = w.compactions;
    opcomms_err rc = OPCOMMS_OK;
    while (rc == OPCOMMS_OK && w.compactions == was) {
        int flush = 0;
        rc = w.s->c->compact(w.s, 1, &flush);
        if (rc == OPCOMMS_OK && flush) rc = w.s->c->flush_end(w.s, w.s->c->flush_run(w.s));
    }
    CHECK_EQ(rc, OPCOMMS_OK);
}

TEST(nothing_of_a_message_is_in_the_file_and_all_of_it_comes_back) {
    int i, round;
    begin(1, 0, by_key());
    for (round = 0; round < 3; round++) {
        for (i = 0; i < 40; i++) put(i % MSG_KINDS, i % 16 == 5 ? 40000 : 20 + (uint64_t)i * 7);
        check_all(); /* from memory, as they were never written */
        CHECK_EQ(w.s->c->flush_begin(w.s), OPCOMMS_OK);
        check_all(); /* while they are written */
        CHECK_EQ(w.s->c->flush_end(w.s, w.s->c->flush_run(w.s)), OPCOMMS_OK);
        check_all();
        for (i = 0; i < 9; i++) {
            CHECK_EQ(world_try(&w), OPCOMMS_OK);
            CHECK_EQ(world_group(&w), OPCOMMS_OK);
            CHECK_EQ(world_ack(&w), OPCOMMS_OK);
        }
        CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
        world_note(&w);
        CHECK(!shows(log_file(&disk)));
        compact();
        check_all();
        CHECK(!shows(log_file(&disk)));
        CHECK_EQ(world_reopen(&w, round % 2), OPCOMMS_OK);
        check_all();
    }
    CHECK(!shows(log_file(&disk)));
    end();
    begin(1, 0, under(OPC__LOG_CLEAR, NULL, NULL, NULL)); /* or what is looked for is not there */
    for (i = 0; i < 8; i++) put(i % MSG_KINDS, 20);
    CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
    CHECK(shows(log_file(&disk)));
    end();
}

TEST(a_log_cut_at_any_byte_opens_with_what_was_whole) {
    opc__store *s = NULL;
    uint64_t uid = 0, ref = 0, position = 0, whole[8];
    size_t n, size;
    int i, k, right;
    fd_clear(&disk);
    CHECK_EQ(open_as(&disk, by_key(), &s), OPCOMMS_OK);
    whole[0] = s->c->written(s);
    for (i = 1; i < 7; i++) { /* written, not synced */
        CHECK_EQ(msg_put_as(s, i % 2 ? MSG_PLAIN : MSG_QUEUED, (uint8_t)i, 0, 10u * (unsigned)i,
                            &uid, &ref, &position), OPCOMMS_OK);
        CHECK_EQ(s->c->write(s), OPCOMMS_OK);
        whole[i] = s->c->written(s);
    }
    log_abandon(s);
    size = log_file(&disk)->size;
    CHECK_EQ(size, whole[6]);
    for (n = (size_t)whole[0]; n <= size; n++) {
        fd_clear(&copy);
        (void)fd_put(&copy, "peer.log", log_file(&disk)->cache, n);
        CHECK_EQ(open_as(&copy, by_key(), &s), OPCOMMS_OK);
        for (k = 0; k < 6 && whole[k + 1] <= n;) k++;
        CHECK_EQ(f.count, k);
        CHECK_EQ(f.wrong, 0);
        for (i = 0; i < f.count; i++) {
            CHECK_EQ(msg_read(s, f.ref[i], (uint8_t)(i + 1), 10u * (unsigned)(i + 1), &right),
                     OPCOMMS_OK);
            CHECK(right);
        }
        CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    }
    for (n = 4096; n < whole[0]; n++) { /* below what was synced it is damage */
        fd_clear(&copy);
        (void)fd_put(&copy, "peer.log", log_file(&disk)->cache, n);
        if (open_as(&copy, by_key(), &s) != OPCOMMS_OK) continue;
        CHECK_EQ(f.count, 0); /* nothing was ever said to be stored */
        CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    }
    CHECK_EQ(mem.used, 0);
}

/* Seals the batch at `at` again, as its writer would: an attacker who read the salt. */
static void forge(fd_file *file, size_t at) {
    uint8_t *b = file->cache + at, *slot = file->cache + 2048;
    uint32_t seed;
    if (memcmp(slot, "OPCLOG", 6) != 0) slot = file->cache;
    seed = opc__crc32c(0, slot + 80, 32);
    opc__buf_put32(b + 8, 0);
    opc__buf_put32(b + 44, opc__crc32c(seed, b, 44));
    opc__buf_put32(b + 8, opc__crc32c(seed, b, opc__buf_be32(b + 4)));
}

TEST(a_bit_that_flips_is_damage_and_a_forged_checksum_does_not_hide_it) {
    opc__store *s = NULL;
    uint64_t uid = 0, ref = 0, position = 0;
    size_t i, size, at = 0;
    int k;
    fd_clear(&disk);
    CHECK_EQ(open_as(&disk, by_key(), &s), OPCOMMS_OK);
    for (k = 1; k < 4; k++) {
        at = (size_t)s->c->written(s);
        CHECK_EQ(msg_put(s, 7, 20, &uid, &ref, &position), OPCOMMS_OK);
        CHECK_EQ(flush_rc(s), OPCOMMS_OK);
    }
    CHECK_EQ(s->c->close(s), OPCOMMS_OK); /* one batch more, which says that all was synced */
    size = log_file(&disk)->size - 48;
    for (i = 4096; i < size; i++) {
        fd_kill(&disk, &copy);
        log_file(&copy)->cache[i] ^= 0x10;
        CHECK_EQ(open_as(&copy, by_key(), &s), OPCOMMS_E_LOG_DAMAGED);
        CHECK(err.position <= i && err.position + 300 > i);
        CHECK_EQ(log_file(&copy)->size, log_file(&disk)->size);
        log_file(&copy)->cache[i] ^= 0x10;
        CHECK(memcmp(log_file(&copy)->cache, log_file(&disk)->cache, size) == 0);
    }
    for (i = at + 48; i < size; i++) { /* the last message; its type, its length, all of it */
        fd_kill(&disk, &copy);
        log_file(&copy)->cache[i] ^= 0x10;
        forge(log_file(&copy), at);
        CHECK_EQ(open_as(&copy, by_key(), &s), OPCOMMS_E_LOG_DAMAGED);
        CHECK_EQ(err.position, at);
    }
    fd_kill(&disk, &copy); /* the same message of an earlier batch in its place */
    memcpy(log_file(&copy)->cache + at + 48, log_file(&copy)->cache + at + 48 - (size - at),
           size - at - 48);
    forge(log_file(&copy), at);
    CHECK_EQ(open_as(&copy, by_key(), &s), OPCOMMS_E_LOG_DAMAGED);
    fd_kill(&disk, &copy); /* nothing forged */
    forge(log_file(&copy), at);
    CHECK_EQ(open_as(&copy, by_key(), &s), OPCOMMS_OK);
    CHECK_EQ(f.count, 3);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    CHECK_EQ(mem.used, 0);
}

static void refused(opc__log_secret secret, opcomms_err want) {
    opc__store *s = NULL;
    fd_kill(&disk, &copy);
    CHECK_EQ(open_as(&copy, secret, &s), want);
    CHECK_EQ(log_file(&copy)->size, log_file(&disk)->size);
    CHECK(memcmp(log_file(&copy)->cache, log_file(&disk)->cache, log_file(&disk)->size) == 0);
    CHECK_EQ(mem.used, 0);
}

TEST(without_the_right_secret_a_log_is_refused_and_stays_as_it_is) {
    opc__seal_ask nobody, empty;
    uint8_t *slot;
    asks();
    opc__seal_ask_init(&nobody, tell_password, NULL);
    opc__seal_ask_init(&empty, tell_password, (void *)(uintptr_t) "");
    begin(1, 0, under(OPC__LOG_BY_PASSWORD, key_a, &ask_a, NULL));
    put(MSG_PLAIN, 100);
    end();
    refused(under(OPC__LOG_CLEAR, key_a, &ask_a, NULL), OPCOMMS_E_ENCRYPTED);
    refused(under(OPC__LOG_BY_PASSWORD, key_a, &ask_b, NULL), OPCOMMS_E_PASSWORD);
    refused(under(OPC__LOG_BY_PASSWORD, key_a, &ask_b, &ask_b), OPCOMMS_E_PASSWORD);
    refused(under(OPC__LOG_BY_PASSWORD, key_a, &nobody, NULL), OPCOMMS_E_ENCRYPTED);
    refused(under(OPC__LOG_BY_PASSWORD, key_a, &ask_a, &empty), OPCOMMS_E_PASSWORD);
    refused(under(OPC__LOG_BY_KEY, key_a, NULL, NULL), OPCOMMS_E_ENCRYPTED);
    refused(under(OPC__LOG_DECRYPT, key_a, &ask_b, NULL), OPCOMMS_E_PASSWORD);
    slot = log_file(&disk)->cache + 2048;
    if (memcmp(slot, "OPCLOG", 6) != 0) slot -= 2048;
    slot[128 + 12 + 1] = 2; /* another cipher, by a newer version */
    opc__buf_put32(slot + 508, opc__crc32c(0, slot, 508));
    refused(under(OPC__LOG_BY_PASSWORD, key_a, &ask_a, NULL), OPCOMMS_E_LOG_VERSION);
    slot[128 + 12 + 1] = 1;
    opc__buf_put32(slot + 128 + 12 + 4, 10000001); /* it would keep us busy */
    opc__buf_put32(slot + 508, opc__crc32c(0, slot, 508));
    refused(under(OPC__LOG_BY_PASSWORD, key_a, &ask_a, NULL), OPCOMMS_E_LOG_VERSION);
    begin(1, 0, by_key());
    put(MSG_PLAIN, 100);
    end();
    refused(under(OPC__LOG_CLEAR, NULL, NULL, NULL), OPCOMMS_E_ENCRYPTED);
    refused(under(OPC__LOG_BY_KEY, key_b, NULL, NULL), OPCOMMS_E_PASSWORD);
    refused(under(OPC__LOG_BY_PASSWORD, NULL, &ask_a, NULL), OPCOMMS_E_ENCRYPTED);
    refused(under(OPC__LOG_BY_PASSWORD, key_a, &nobody, NULL), OPCOMMS_E_PASSWORD);
    fd_clear(&disk); /* and a new one without a password is not begun */
    w.o.secret = under(OPC__LOG_BY_PASSWORD, key_a, &empty, NULL);
    CHECK_EQ(log_open_with(&w.o, &w.s, &w.f, &err), OPCOMMS_E_PASSWORD);
    CHECK_EQ(log_file(&disk)->size, 0);
    CHECK_EQ(mem.used, 0);
}

/* How a log can be, and the secrets that open it without changing it. */
static opc__log_secret state(int i) {
    static const int want[4] = {OPC__LOG_CLEAR, OPC__LOG_BY_KEY, OPC__LOG_BY_PASSWORD,
                                OPC__LOG_BY_PASSWORD};
    return under(want[i], key_a, i < 2 ? NULL : i == 2 ? &ask_a : &ask_b, NULL);
}

/* The secrets that make it another one. */
static opc__log_secret change(int from, int to) {
    opc__log_secret s = state(to);
    if (from >= 2) s.password = from == 2 ? &ask_a : &ask_b;
    if (to >= 2 && from != to) s.fresh = to == 2 ? &ask_a : &ask_b;
    if (to == 0) s.want = OPC__LOG_DECRYPT;
    return s;
}

static uint32_t key_epoch(fdisk *d) {
    const uint8_t *c = log_file(d)->cache;
    int second = opc__log_slot_valid(c + 2048) &&
                 (!opc__log_slot_valid(c) || opc__buf_be64(c + 2064) > opc__buf_be64(c + 16));
    return opc__buf_be32(c + (second ? 2048 : 0) + 128);
}

TEST(a_log_becomes_encrypted_or_not_or_under_another_secret_and_keeps_everything) {
    int from, to, i;
    asks();
    for (from = 0; from < 4; from++) {
        for (to = 0; to < 4; to++) {
            uint32_t epoch;
            begin((uint64_t)(from * 4 + to), 0, state(from));
            for (i = 0; i < 20; i++) {
                put(i % MSG_KINDS, i % 16 == 5 ? 40000 : 30);
                if (i % 7 == 0) CHECK_EQ(world_reopen(&w, 1), OPCOMMS_OK);
            }
            CHECK_EQ(world_try(&w), OPCOMMS_OK);
            CHECK_EQ(world_ack(&w), OPCOMMS_OK);
            epoch = key_epoch(&disk);
            CHECK_EQ(epoch != 0, from != 0);
            w.o.secret = change(from, to);
            CHECK_EQ(world_reopen(&w, 1), OPCOMMS_OK);
            CHECK_EQ(opc__log_of(w.s)->convert, from != to);
            CHECK_EQ(opc__log_convert(w.s, &err), OPCOMMS_OK);
            CHECK_EQ(w.compactions, from != to);
            CHECK_EQ(key_epoch(&disk), to == 0 ? 0 : epoch + (from != to));
            check_all();
            CHECK_EQ(shows(log_file(&disk)), to == 0);
            put(MSG_QUEUED, 50);
            CHECK_EQ(world_reopen(&w, 1), OPCOMMS_OK); /* the same config again changes nothing */
            CHECK_EQ(opc__log_of(w.s)->convert, 0);
            CHECK_EQ(shows(log_file(&disk)), to == 0);
            w.o.secret = state(to);
            CHECK_EQ(world_reopen(&w, 1), OPCOMMS_OK);
            CHECK_EQ(opc__log_of(w.s)->convert, 0);
            check_all();
            end();
            if (from == 0 || from == to || to < 2) continue; /* others hold what opens it */
            refused(state(from), from == 1 ? OPCOMMS_E_ENCRYPTED : OPCOMMS_E_PASSWORD);
        }
    }
}

/* While a log is made another one every call of the disk fails once: it is then one or the other,
   whole, and opens by the secrets it was to be changed with. */
TEST(a_change_that_fails_anywhere_leaves_one_log_or_the_other_and_nothing_is_lost) {
    uint64_t n, failed = 0;
    asks();
    for (n = 1;; n++) {
        int i, done, from = (int)(n % 4), to = (int)(n / 4 % 4);
        opcomms_err rc;
        if (from == to) to = (to + 1) % 4;
        begin(n, 0, state(from));
        for (i = 0; i < 8; i++) put(i % MSG_KINDS, i == 5 ? 20000 : 30);
        CHECK_EQ(w.s->c->close(w.s), OPCOMMS_OK);
        w.s = NULL;
        for (i = 0; i < w.n; i++) w.m[i].durable = 1;
        w.o.secret = change(from, to);
        disk.calls = 0;
        disk.fail_at = n;
        disk.fail_partly = (int)(n & 1);
        disk.rename_lies = (int)(n & 2);
        rc = log_open_with(&w.o, &w.s, &w.f, &err);
        if (rc == OPCOMMS_OK) {
            world_settle(&w);
            rc = opc__log_convert(w.s, &err);
            log_abandon(w.s);
        }
        done = disk.calls < n;
        CHECK(rc == OPCOMMS_OK || !done);
        failed += rc != OPCOMMS_OK;
        disk.fail_at = 0;
        disk.rename_lies = 0;
        CHECK_EQ(world_open(&w), OPCOMMS_OK);
        CHECK_EQ(opc__log_convert(w.s, &err), OPCOMMS_OK);
        check_all();
        CHECK_EQ(shows(log_file(&disk)), to == 0);
        end();
        if (done) break;
    }
    CHECK(failed > 20);
}

TEST(a_backup_opens_by_the_same_secret_and_shows_nothing) {
    int i;
    opcomms_err rc;
    begin(5, 0, by_key());
    for (i = 0; i < 20; i++) put(i % MSG_KINDS, i == 5 ? 40000 : 30);
    CHECK_EQ(world_ack(&w), OPCOMMS_OK);
    CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
    CHECK_EQ(w.s->c->backup(w.s, "dir/copy.log"), OPCOMMS_OK);
    do {
        int flush = 0;
        rc = w.s->c->compact(w.s, 0, &flush);
        if (flush) CHECK_EQ(w.s->c->flush_end(w.s, w.s->c->flush_run(w.s)), OPCOMMS_OK);
    } while (rc == OPCOMMS_OK && w.s->c->backup(w.s, NULL) == OPCOMMS_E_AGAIN);
    CHECK_EQ(w.s->c->backup(w.s, NULL), OPCOMMS_OK);
    world_note(&w);
    CHECK(!shows(fd_find(&disk, "copy.log")));
    CHECK(w.s->c->close(w.s) == OPCOMMS_OK);
    for (i = 0; i < w.n; i++) w.m[i].durable = 1;
    w.o.path = "dir/copy.log";
    w.opened = 0;
    CHECK_EQ(world_open(&w), OPCOMMS_OK);
    check_all();
    end();
    CHECK_EQ(open_as(&disk, under(OPC__LOG_BY_KEY, key_b, NULL, NULL), &w.s), OPCOMMS_E_PASSWORD);
}

/* ---- what must never come twice ---- */

#define SALTS_MAX 2000
static uint8_t salts[SALTS_MAX][32];
static int salts_count;

/* The salts in a file, by the manual; those not seen yet are added. How many it has. */
static int salts_of(fd_file *file) {
    const uint8_t *p = file->cache;
    size_t at = 4096, op;
    int n = 0, i;
    while (at + 48 <= file->size && memcmp(p + at, "OPCB", 4) == 0) {
        size_t stop = at + opc__buf_be32(p + at + 4);
        if (stop > file->size) break;
        for (op = at + 48; op < stop; op += 8 + opc__buf_be32(p + op + 4)) {
            if (p[op] != 15) continue;
            n++;
            CHECK_EQ(opc__buf_be32(p + op + 4), 32);
            for (i = 0; i < salts_count; i++) {
                if (memcmp(salts[i], p + op + 8, 32) == 0) break;
            }
            if (i == salts_count && i < SALTS_MAX) memcpy(salts[salts_count++], p + op + 8, 32);
        }
        at = stop;
    }
    return n;
}

TEST(each_opening_and_each_copy_has_its_own_key_and_many_openings_make_a_compaction) {
    uint64_t was;
    int i, before, n = 0;
    salts_count = 0;
    begin(1, 0, by_key());
    w.o.dead_bytes_min = UINT64_MAX >> 1;
    for (i = 0; i < 400 && w.compactions == 0; i++) {
        int flush = 0;
        opcomms_err rc = OPCOMMS_OK;
        before = salts_count;
        n = salts_of(log_file(&disk));
        CHECK_EQ(salts_count, before + 1); /* this opening's */
        CHECK_EQ(n, i + 1);
        CHECK_EQ(opc__log_of(w.s)->salts, i + 1);
        if (i < 250 || i % 3 == 0) put(i % MSG_KINDS, 5);
        CHECK_EQ(flush_rc(w.s), OPCOMMS_OK);
        world_note(&w);
        while (rc == OPCOMMS_OK && w.compactions == 0) {
            rc = w.s->c->compact(w.s, 0, &flush);
            if (flush) CHECK_EQ(w.s->c->flush_end(w.s, w.s->c->flush_run(w.s)), OPCOMMS_OK);
        }
        CHECK_EQ(w.compactions, i + 1 > 256);
        if (w.compactions == 0) CHECK_EQ(world_reopen(&w, i % 2), OPCOMMS_OK);
    }
    CHECK_EQ(n, 257);
    before = salts_count;
    CHECK_EQ(salts_of(log_file(&disk)), 1);
    CHECK_EQ(salts_count, before + 1); /* the compaction's */
    check_all();
    CHECK_EQ(world_reopen(&w, 1), OPCOMMS_OK);
    check_all();
    CHECK_EQ(salts_of(log_file(&disk)), 2);
    was = w.compactions;
    compact();
    CHECK_EQ(w.compactions, was + 1);
    before = salts_count;
    CHECK_EQ(salts_of(log_file(&disk)), 1);
    CHECK_EQ(salts_count, before + 1);
    end();
}

TEST(what_is_written_over_a_cut_tail_is_under_another_key) {
    uint8_t first[200];
    opc__store *s = NULL;
    uint64_t uid = 0, ref = 0, position = 0, at;
    int i;
    fd_clear(&disk);
    CHECK_EQ(open_as(&disk, by_key(), &s), OPCOMMS_OK);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    for (i = 0; i < 2; i++) { /* two lives from one file: a snapshot that is restored */
        fd_kill(&disk, &copy);
        copy.rng = (uint64_t)i + 77;
        CHECK_EQ(open_as(&copy, by_key(), &s), OPCOMMS_OK);
        at = s->c->written(s);
        CHECK_EQ(msg_put(s, 7, 100, &uid, &ref, &position), OPCOMMS_OK);
        CHECK_EQ(flush_rc(s), OPCOMMS_OK);
        CHECK(log_file(&copy)->size >= at + 56 + sizeof first);
        if (i == 0) {
            memcpy(first, log_file(&copy)->cache + at + 56, sizeof first);
        } else {
            size_t k, same = 0;
            for (k = 0; k < sizeof first; k++) {
                same += first[k] == log_file(&copy)->cache[at + 56 + k];
            }
            CHECK(same < 20); /* of equal plaintext at the same place: by chance only */
        }
        log_abandon(s);
    }
}

/* ---- power cuts ---- */

static uint64_t images, cut_rng;

static void on_change(void *user, fdisk *d, int kind) {
    opc__store *s = NULL;
    static found shown;
    opc__log_options o = w.o;
    (void)user;
    (void)kind;
    if (fd_below(&cut_rng, 3) != 0) return;
    images++;
    fd_cut(d, &image, fd_below(&cut_rng, 3) == 0 ? 4096 : 512, (int)fd_below(&cut_rng, FD_CUTS),
           &cut_rng);
    o.plat = &image.plat;
    if (log_open_with(&o, &s, &shown, &err) != OPCOMMS_OK) {
        printf("%s\n", err.text);
        world_bad(&w, "a power cut is taken for damage at", err.position);
        return;
    }
    world_check(&w, fd_below(&cut_rng, 4) == 0 ? s : NULL, &shown);
    log_abandon(s);
}

TEST(what_was_durable_survives_power_cuts_when_it_is_encrypted) {
    uint64_t seed, switched = 0;
    int i;
    for (seed = 1; seed <= 8; seed++) {
        fd_clear(&disk);
        disk.rng = cut_rng = seed;
        disk.write_most = seed % 4 == 0 ? 700 : 0;
        world_init(&w, &disk, seed, (int)(seed % 3));
        w.o.secret = by_key();
        w.o.ahead_bytes = seed % 4 < 2 ? 16384 : 0;
        CHECK_EQ(world_open(&w), OPCOMMS_OK);
        disk.hook = on_change;
        for (i = 0; i < 60 && w.s != NULL && w.bad == 0; i++) CHECK_EQ(world_step(&w), OPCOMMS_OK);
        disk.hook = NULL;
        CHECK(!shows(log_file(&disk)));
        switched += w.compactions;
        end();
    }
    CHECK(images > 500);
    CHECK(switched > 5);
}

/* ---- without its peer ---- */

TEST(verify_looks_at_batches_and_needs_no_secret) {
    opc__look k;
    size_t size;
    int i;
    begin(3, 0, by_key());
    for (i = 0; i < 12; i++) put(i % MSG_KINDS, 30);
    end();
    CHECK_EQ(opc__look_read(&k, &disk.plat, &mem, "dir/peer.log", 0, &err), OPCOMMS_OK);
    CHECK_EQ(k.r.flags, OPCOMMS_REPORT_ENCRYPTED | OPCOMMS_REPORT_CLOSED);
    CHECK(k.r.batches >= 3);
    CHECK_EQ(k.r.messages, 0);
    CHECK_EQ(opc__look_blind(&k, OPCOMMS_OK, &err), OPCOMMS_E_ENCRYPTED);
    opc__look_close(&k);
    size = log_file(&disk)->size;
    for (i = 4096; (size_t)i < size; i += 13) {
        opcomms_err rc;
        log_file(&disk)->cache[i] ^= 1;
        rc = opc__look_read(&k, &disk.plat, &mem, "dir/peer.log", 0, &err);
        /* the last batch only says that all was synced */
        CHECK_EQ(rc, (size_t)i < size - 48 ? OPCOMMS_E_LOG_DAMAGED : OPCOMMS_OK);
        CHECK(k.r.flags & OPCOMMS_REPORT_ENCRYPTED);
        opc__look_close(&k);
        log_file(&disk)->cache[i] ^= 1;
    }
    CHECK_EQ(mem.used, 0);
}

/* ---- by the config ---- */

static opcomms_config cfg;

static opcomms_err open_peer(uint32_t flags, const char *password, const char *password_new,
                             opcomms_peer **p) {
    cfg.flags = OPCOMMS_NO_BACKGROUND | OPCOMMS_NO_LISTEN | flags;
    cfg.log_password = password != NULL ? tell_password : NULL;
    cfg.log_password_user = (void *)(uintptr_t)password;
    cfg.log_password_new = password_new != NULL ? tell_password : NULL;
    cfg.log_password_new_user = (void *)(uintptr_t)password_new;
    *p = NULL;
    return opcomms_new(&cfg, p, &err);
}

/* A state record of the caller goes from opening to opening. */
static void check_peer(uint32_t flags, const char *password, const char *password_new, int dark) {
    static const char mark[] = "a state that nobody else shall read";
    opcomms_peer *p = NULL;
    uint8_t state[64];
    size_t n = 0;
    CHECK_EQ(open_peer(flags, password, password_new, &p), OPCOMMS_OK);
    if (p == NULL) {
        printf("%s\n", err.text);
        return;
    }
    CHECK_EQ(opcomms_get_state(p, state, sizeof state, &n), OPCOMMS_OK);
    CHECK_EQ(n, sizeof mark);
    CHECK(n != sizeof mark || memcmp(state, mark, n) == 0);
    opcomms_free(p);
    CHECK_EQ(contains(log_file(&disk), mark, 20), !dark);
}

TEST(the_config_turns_encryption_on_and_off_and_changes_the_password) {
    static const char mark[] = "a state that nobody else shall read";
    opcomms_platform plat;
    opcomms_allow_list *allow = NULL;
    opcomms_routing_table *routes = NULL;
    opcomms_peer *p = NULL;
    char pem[4096];
    size_t len = 0;
    fd_clear(&disk);
    plat = fd_platform(&disk);
    CHECK_EQ(opcomms_generate_key_pem(OPCOMMS_KEY_P256, pem, sizeof pem, &len, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_new(NULL, &allow), OPCOMMS_OK);
    CHECK_EQ(opcomms_routing_table_new(NULL, &routes), OPCOMMS_OK);
    opcomms_config_init(&cfg);
    cfg.key_pem = pem;
    cfg.key_pem_bytes = len;
    cfg.allow = allow;
    cfg.routes = routes;
    cfg.log_path = "dir/peer.log";
    cfg.platform = &plat;
    CHECK_EQ(open_peer(0, NULL, NULL, &p), OPCOMMS_OK);
    CHECK_EQ(opcomms_commit(p, NULL, 0, NULL, 0, mark, sizeof mark, &err), OPCOMMS_OK);
    opcomms_free(p);
    check_peer(0, NULL, NULL, 0);
    check_peer(OPCOMMS_ENCRYPT_LOG, NULL, NULL, 1);
    check_peer(OPCOMMS_ENCRYPT_LOG, NULL, NULL, 1);
    CHECK_EQ(open_peer(0, NULL, NULL, &p), OPCOMMS_E_ENCRYPTED);
    check_peer(0, "first", NULL, 1);
    CHECK_EQ(open_peer(0, "other", NULL, &p), OPCOMMS_E_PASSWORD);
    CHECK_EQ(open_peer(OPCOMMS_DECRYPT_LOG, NULL, NULL, &p), OPCOMMS_E_ENCRYPTED);
    check_peer(0, "first", "second", 1);
    CHECK_EQ(open_peer(0, "first", NULL, &p), OPCOMMS_E_PASSWORD);
    check_peer(0, "second", NULL, 1);
    check_peer(OPCOMMS_DECRYPT_LOG, "second", NULL, 0);
    check_peer(OPCOMMS_DECRYPT_LOG, NULL, NULL, 0);
    CHECK_EQ(open_peer(OPCOMMS_ENCRYPT_LOG | OPCOMMS_DECRYPT_LOG, NULL, NULL, &p), OPCOMMS_E_INVAL);
    CHECK_EQ(open_peer(OPCOMMS_ENCRYPT_LOG, "first", "second", &p), OPCOMMS_E_INVAL);
    CHECK_EQ(open_peer(0, NULL, "second", &p), OPCOMMS_E_INVAL);
    cfg.size = (uint32_t)offsetof(opcomms_config, log_password); /* of an older program */
    CHECK_EQ(open_peer(0, "first", "second", &p), OPCOMMS_OK);
    opcomms_free(p);
    CHECK(contains(log_file(&disk), mark, 20));
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
}

int main(void) {
    pool_init();
    fd_init(&disk, 1);
    fd_init(&copy, 2);
    fd_init(&image, 3);
    RUN(the_cipher_is_that_of_rfc_8439_2_8_2);
    RUN(keys_are_derived_by_hkdf_of_rfc_5869_a_1_and_a_2);
    RUN(a_wrapped_key_comes_out_by_the_same_secret_only_and_by_no_byte_changed);
    RUN(a_private_key_gives_one_secret_whatever_the_order_of_its_primes);
    RUN(nothing_of_a_message_is_in_the_file_and_all_of_it_comes_back);
    RUN(a_log_cut_at_any_byte_opens_with_what_was_whole);
    RUN(a_bit_that_flips_is_damage_and_a_forged_checksum_does_not_hide_it);
    RUN(without_the_right_secret_a_log_is_refused_and_stays_as_it_is);
    RUN(a_log_becomes_encrypted_or_not_or_under_another_secret_and_keeps_everything);
    RUN(a_change_that_fails_anywhere_leaves_one_log_or_the_other_and_nothing_is_lost);
    RUN(a_backup_opens_by_the_same_secret_and_shows_nothing);
    RUN(each_opening_and_each_copy_has_its_own_key_and_many_openings_make_a_compaction);
    RUN(what_is_written_over_a_cut_tail_is_under_another_key);
    RUN(what_was_durable_survives_power_cuts_when_it_is_encrypted);
    RUN(verify_looks_at_batches_and_needs_no_secret);
    RUN(the_config_turns_encryption_on_and_off_and_changes_the_password);
    fd_free(&disk);
    fd_free(&copy);
    fd_free(&image);
    pool_end();
    return test_end();
}
