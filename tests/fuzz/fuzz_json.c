/* The JSON tokenizer: the same tokens however the input is cut; accepts exactly what a plain
   recursive reading of RFC 8259 accepts; what it accepts, written anew from its tokens, gives the
   same tokens again. */
#include "fuzz.h"

/* ---- the recursive reading: strict UTF-8, paired surrogates, 512 containers deep ---- */

typedef struct fuzz_json_ref {
    const uint8_t *p;
    const uint8_t *end;
} fuzz_json_ref;

static void fuzz_json_space(fuzz_json_ref *r) {
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\t' || *r->p == '\n' || *r->p == '\r'))
        r->p++;
}

static int fuzz_json_hex4(const uint8_t *p, const uint8_t *end, unsigned *out) {
    char text[5];
    size_t i;
    if (end - p < 4) return 0;
    for (i = 0; i < 4; i++) {
        if (strchr("0123456789abcdefABCDEF", p[i]) == NULL || p[i] == 0) return 0;
    }
    memcpy(text, p, 4);
    text[4] = 0;
    *out = (unsigned)strtoul(text, NULL, 16);
    return 1;
}

static int fuzz_json_text(fuzz_json_ref *r) {
    const uint8_t *start = ++r->p;
    while (r->p < r->end && *r->p != '"') {
        unsigned u = 0, v = 0;
        if (*r->p < 0x20) return 0;
        if (*r->p++ != '\\') continue;
        if (r->p == r->end) return 0;
        if (*r->p != 'u') {
            if (*r->p == 0 || strchr("\"\\/bfnrt", *r->p) == NULL) return 0;
            r->p++;
            continue;
        }
        if (!fuzz_json_hex4(r->p + 1, r->end, &u)) return 0;
        r->p += 5;
        if (u >= 0xdc00 && u <= 0xdfff) return 0;
        if (u < 0xd800 || u > 0xdbff) continue;
        if (r->end - r->p < 6 || r->p[0] != '\\' || r->p[1] != 'u') return 0;
        if (!fuzz_json_hex4(r->p + 2, r->end, &v) || v < 0xdc00 || v > 0xdfff) return 0;
        r->p += 6;
    }
    if (r->p == r->end || !opc__str_utf8_valid(start, (size_t)(r->p - start))) return 0;
    r->p++;
    return 1;
}

static int fuzz_json_digits(fuzz_json_ref *r) {
    const uint8_t *start = r->p;
    while (r->p < r->end && *r->p >= '0' && *r->p <= '9') r->p++;
    return r->p > start;
}

static int fuzz_json_number(fuzz_json_ref *r) {
    if (*r->p == '-') r->p++;
    if (r->p < r->end && *r->p == '0') {
        r->p++;
    } else if (!fuzz_json_digits(r)) {
        return 0;
    }
    if (r->p < r->end && *r->p == '.') {
        r->p++;
        if (!fuzz_json_digits(r)) return 0;
    }
    if (r->p < r->end && (*r->p == 'e' || *r->p == 'E')) {
        r->p++;
        if (r->p < r->end && (*r->p == '+' || *r->p == '-')) r->p++;
        if (!fuzz_json_digits(r)) return 0;
    }
    return 1;
}

static int fuzz_json_value(fuzz_json_ref *r, unsigned depth) {
    static const char *const word[3] = {"true", "false", "null"};
    uint8_t open, close;
    size_t i;
    fuzz_json_space(r);
    if (r->p == r->end) return 0;
    open = *r->p;
    if (open == '"') return fuzz_json_text(r);
    if (open == '-' || (open >= '0' && open <= '9')) return fuzz_json_number(r);
    for (i = 0; i < 3; i++) {
        size_t n = strlen(word[i]);
        if ((size_t)(r->end - r->p) >= n && memcmp(r->p, word[i], n) == 0) {
            r->p += n;
            return 1;
        }
    }
    if ((open != '{' && open != '[') || depth == OPC__JSON_DEPTH) return 0;
    close = open == '{' ? '}' : ']';
    r->p++;
    fuzz_json_space(r);
    if (r->p < r->end && *r->p == close) {
        r->p++;
        return 1;
    }
    for (;;) {
        fuzz_json_space(r);
        if (open == '{') {
            if (r->p == r->end || *r->p != '"' || !fuzz_json_text(r)) return 0;
            fuzz_json_space(r);
            if (r->p == r->end || *r->p++ != ':') return 0;
        }
        if (!fuzz_json_value(r, depth + 1)) return 0;
        fuzz_json_space(r);
        if (r->p == r->end) return 0;
        if (*r->p == close) {
            r->p++;
            return 1;
        }
        if (*r->p++ != ',') return 0;
    }
}

/* A number alone is never complete, because more digits could follow; a space behind it ends it. */
static int fuzz_json_accepts(const uint8_t *p, size_t n) {
    fuzz_json_ref r;
    int number;
    r.p = p;
    r.end = p + n;
    fuzz_json_space(&r);
    number = r.p < r.end && (*r.p == '-' || (*r.p >= '0' && *r.p <= '9'));
    if (!fuzz_json_value(&r, 0)) return 0;
    if (number && r.p == r.end) return 0;
    fuzz_json_space(&r);
    return r.p == r.end;
}

/* ---- tokens ---- */

/* 0xff begins a token, which no text can contain. Returns 1 when one whole document was read. */
static int fuzz_json_tokens(const uint8_t *p, size_t n, int way, fuzz_buf *out) {
    opc__json j;
    fuzz_slices s;
    size_t at = 0;
    fuzz_slices_init(&s, way, p, n);
    opc__json_init(&j);
    while (at < n) {
        size_t some = fuzz_slice(&s, n - at);
        uint8_t *piece = fuzz_exact(p + at, some);
        const uint8_t *q = piece;
        for (;;) {
            opc__json_token t;
            const uint8_t *before = q;
            uint8_t mark[3];
            opcomms_err rc = opc__json_step(&j, &q, piece + some, &t);
            FUZZ_CHECK(q >= before && q <= piece + some);
            if (rc != OPCOMMS_OK) {
                FUZZ_CHECK(rc == OPCOMMS_E_PROTOCOL);
                free(piece);
                return 0;
            }
            if (t.kind == OPC__JSON_MORE) break;
            if (t.kind == OPC__JSON_PIECE) {
                FUZZ_CHECK(t.n > 0);
                fuzz_put(out, t.p, t.n);
                continue;
            }
            mark[0] = 0xff;
            mark[1] = (uint8_t)t.kind;
            mark[2] = (uint8_t)(t.key | (t.is_u64 << 1));
            fuzz_put(out, mark, 3);
            if (t.kind == OPC__JSON_NUMBER) fuzz_put(out, &t.u64, sizeof t.u64);
        }
        FUZZ_CHECK(q == piece + some);
        free(piece);
        at += some;
    }
    return opc__json_done(&j);
}

/* Tokens back to text. */
static void fuzz_json_emit(const fuzz_buf *tokens, fuzz_buf *out) {
    uint8_t first[OPC__JSON_DEPTH + 1]; /* per container: nothing stands in it yet */
    size_t at = 0, depth = 0;
    int after_key = 1;
    while (at < tokens->len) {
        int kind, flags, key;
        FUZZ_CHECK(tokens->p[at] == 0xff);
        kind = tokens->p[at + 1];
        flags = tokens->p[at + 2];
        key = flags & 1;
        at += 3;
        if (kind == OPC__JSON_OBJECT_END || kind == OPC__JSON_ARRAY_END) {
            fuzz_str(out, kind == OPC__JSON_OBJECT_END ? " }" : " ]");
            depth--;
            continue;
        }
        if (kind == OPC__JSON_TEXT_END) {
            fuzz_str(out, key ? "\" :" : "\"");
            after_key = key;
            continue;
        }
        if (!after_key && depth > 0 && !first[depth]) fuzz_str(out, "\t,");
        if (depth > 0) first[depth] = 0;
        after_key = 0;
        switch (kind) {
        case OPC__JSON_OBJECT:
        case OPC__JSON_ARRAY:
            fuzz_str(out, kind == OPC__JSON_OBJECT ? "{\n" : "[\r");
            first[++depth] = 1;
            break;
        case OPC__JSON_TEXT: {
            size_t start = at;
            opc__wr w;
            uint8_t *text;
            while (tokens->p[at] != 0xff) at++;
            text = (uint8_t *)malloc(6 * (at - start) + 1);
            opc__wr_init(&w, text, 6 * (at - start) + 1);
            opc__tarpc_escaped(&w, tokens->p + start, at - start);
            FUZZ_CHECK(!w.full);
            fuzz_str(out, "\"");
            fuzz_put(out, text, opc__wr_len(&w));
            free(text);
            break;
        }
        case OPC__JSON_NUMBER: {
            uint64_t v;
            char digits[32];
            memcpy(&v, tokens->p + at, sizeof v);
            at += sizeof v;
            snprintf(digits, sizeof digits, "%llu ", (unsigned long long)v);
            fuzz_str(out, (flags & 2) ? digits : "-0.0 ");
            break;
        }
        case OPC__JSON_TRUE: fuzz_str(out, "true"); break;
        case OPC__JSON_FALSE: fuzz_str(out, "false"); break;
        default: fuzz_str(out, "null"); break;
        }
    }
    FUZZ_CHECK(depth == 0);
}

static void fuzz_json(const uint8_t *data, size_t size) {
    fuzz_buf want, got, text;
    int accepted, way;
    memset(&want, 0, sizeof want);
    memset(&text, 0, sizeof text);
    accepted = fuzz_json_tokens(data, size, FUZZ_WHOLE, &want);
    FUZZ_CHECK(accepted == fuzz_json_accepts(data, size));
    for (way = FUZZ_BYTES; way < FUZZ_WAYS; way++) {
        memset(&got, 0, sizeof got);
        FUZZ_CHECK(fuzz_json_tokens(data, size, way, &got) == accepted);
        /* what was read before an error may differ by the start of a text, not by a token */
        if (accepted) FUZZ_CHECK(fuzz_same(&want, &got));
        fuzz_free(&got);
    }
    if (accepted) {
        memset(&got, 0, sizeof got);
        fuzz_json_emit(&want, &text);
        FUZZ_CHECK(fuzz_json_tokens(text.p, text.len, FUZZ_CUT, &got) == 1);
        FUZZ_CHECK(fuzz_same(&want, &got));
        fuzz_free(&got);
    }
    fuzz_free(&want);
    fuzz_free(&text);
}

FUZZ_TARGET(fuzz_json)
