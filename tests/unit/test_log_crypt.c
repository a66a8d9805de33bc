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
    static const char text[] = "Ladies and Gentlemen of the class of '99: If I could offer you only "
                               "one tip for the future, sunscreen would be it.";
    uint8_t key[32], nonce[12], ad[12], want[114], p[114], tag[16], want_tag[16];
    opc__seal_cipher c[2];
    size_t i;
    for (i = 0; i < 32; i++) key[i] = (uint8_t)(0x80 + i);
    unhex("070000004041424344454647", nonce);
    unhex("50515253c0c1c2c3c4c5c6c7", ad);
    unhex("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da"
          "92728b1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585"
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
    unhex("b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e"
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

int main(void) {
    pool_init();
    RUN(the_cipher_is_that_of_rfc_8439_2_8_2);
    RUN(keys_are_derived_by_hkdf_of_rfc_5869_a_1_and_a_2);
    RUN(a_wrapped_key_comes_out_by_the_same_secret_only_and_by_no_byte_changed);
    RUN(a_private_key_gives_one_secret_whatever_the_order_of_its_primes);
    pool_end();
    return test_end();
}
