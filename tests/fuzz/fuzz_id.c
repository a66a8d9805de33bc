/* Identifiers, route identifiers, IP addresses and ip:port: what is read, written anew, reads the
   same; IP addresses get the verdict and value of inet_pton. */
#include "fuzz.h"

#include <arpa/inet.h>

static void fuzz_id_identifier(const char *s, size_t n, int rule) {
    opcomms_identifier id, again;
    char text[136], back[136];
    memset(&again, 0x5a, sizeof again);
    if (!opc__id_parse(s, n, rule, &id)) return;
    FUZZ_CHECK(memchr(id.hash, 0, sizeof id.hash) != NULL);
    FUZZ_CHECK(id.id >= (rule ? OPCOMMS_ANY_ID : 0) && id.id <= 255);
    FUZZ_CHECK(opcomms_identifier_format(&id, text, sizeof text) == OPCOMMS_OK);
    FUZZ_CHECK(opcomms_identifier_format(&id, back, strlen(text)) == OPCOMMS_E_BUFFER);
    if (rule) {
        FUZZ_CHECK(opcomms_route_identifier_parse(text, &again) == OPCOMMS_OK);
    } else {
        FUZZ_CHECK(opcomms_identifier_parse(text, &again) == OPCOMMS_OK);
    }
    FUZZ_CHECK(memcmp(&id, &again, sizeof id) == 0);
}

static void fuzz_id_ip(const char *s, size_t n) {
    opcomms_address a, b;
    uint8_t want[16];
    char text[64];
    int four = inet_pton(AF_INET, s, want) == 1, six = 0, got;
    if (!four) six = inet_pton(AF_INET6, s, want) == 1;
    if (memchr(s, 0, n) != NULL) four = six = 0; /* inet_pton saw only a part */
    got = opc__id_ip_parse(s, n, &a) == OPCOMMS_OK;
    FUZZ_CHECK(got == (four || six));
    if (!got) return;
    FUZZ_CHECK(a.family == (four ? 4 : 6) && a.port == 0);
    FUZZ_CHECK(memcmp(a.ip, want, four ? 4 : 16) == 0);
    opc__id_address_format(&a, 0, text);
    FUZZ_CHECK(opc__id_ip_parse(text, strlen(text), &b) == OPCOMMS_OK);
    FUZZ_CHECK(memcmp(&a, &b, sizeof a) == 0);
    FUZZ_CHECK(opc__id_ip_equal(&a, &b));
}

static void fuzz_id_address(const char *s, size_t n) {
    opcomms_address a, b;
    char text[64], again[64];
    if (opc__id_address_parse(s, n, &a) != OPCOMMS_OK) return;
    FUZZ_CHECK(a.family == 4 || a.family == 6);
    opc__id_address_format(&a, 1, text);
    FUZZ_CHECK(opc__id_address_parse(text, strlen(text), &b) == OPCOMMS_OK);
    FUZZ_CHECK(memcmp(&a, &b, sizeof a) == 0);
    opc__id_address_format(&b, 1, again);
    FUZZ_CHECK(strcmp(text, again) == 0);
}

static void fuzz_id(const uint8_t *data, size_t size) {
    uint8_t *exact = fuzz_exact(data, size);
    char *text = (char *)malloc(size + 1); /* with its end, for inet_pton */
    if (size > 0) memcpy(text, data, size);
    text[size] = 0;
    fuzz_id_identifier((const char *)exact, size, 0);
    fuzz_id_identifier((const char *)exact, size, 1);
    fuzz_id_address((const char *)exact, size);
    fuzz_id_ip(text, size);
    free(text);
    free(exact);
}

FUZZ_TARGET(fuzz_id)
