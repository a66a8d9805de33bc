/* What the targets of allow list and routing table share. */
#ifndef OPCOMMS_FUZZ_LIST_H
#define OPCOMMS_FUZZ_LIST_H
#include "fuzz.h"

FUZZ_FN int fuzz_list_equal(const opc__rules *x, const opc__rules *y) {
    uint32_t i;
    if (x->count != y->count || x->all != y->all || x->any_ip != y->any_ip) return 0;
    for (i = 0; i < x->count; i++) {
        const opc__rule *a = &x->rule[i], *b = &y->rule[i];
        if (opc__rule_order(a, b) != 0 || memcmp(&a->ip, &b->ip, sizeof a->ip) != 0) return 0;
    }
    return 1;
}

/* Sorted, without doubles, and counted. */
FUZZ_FN void fuzz_list_valid(const opc__rules *r) {
    uint32_t i, any = 0;
    for (i = 0; i < r->count; i++) {
        if (i > 0) FUZZ_CHECK(opc__rule_order(&r->rule[i - 1], &r->rule[i]) < 0);
        any += r->rule[i].ip.family == 0;
    }
    FUZZ_CHECK(any == r->any_ip && r->count <= r->cap);
    FUZZ_CHECK(!r->all || r->count == 0);
}

FUZZ_FN void fuzz_list_error(const opcomms_error *err, opcomms_err rc, const uint8_t *p, size_t n) {
    size_t lines = 1, i;
    for (i = 0; i < n; i++) lines += p[i] == '\n' || p[i] == '\r';
    FUZZ_CHECK(rc == OPCOMMS_E_SYNTAX && err->code == rc);
    FUZZ_CHECK(err->line >= 1 && err->line <= lines);
    FUZZ_CHECK(err->text[0] != 0);
}

#endif
