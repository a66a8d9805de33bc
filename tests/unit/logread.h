/* Reads a log file from the description in opcomms.h, section >>log, alone: nothing of the
   implementation is used, not even its CRC. */
#ifndef OPCOMMS_LOGREAD_H
#define OPCOMMS_LOGREAD_H

#include <stdint.h>
#include <string.h>

#define LR_BATCHES 4096
#define LR_MSGS 4096

typedef struct lr_batch {
    size_t at, len;
    uint64_t counter, synced;
    uint32_t ops, flags;
} lr_batch;

typedef struct lr_msg {
    size_t at;   /* of its type byte */
    uint64_t uid, bytes, wire_bytes, time;
    const uint8_t *from, *dest, *body, *context;
    uint32_t dest_len, frags, flags, context_len;
    size_t fixed; /* the offsets of the fragments begin there */
    int type;
    int acked;
    size_t acked_at; /* where that stands */
    int dead;
    uint32_t attempts;
    uint64_t number; /* in its stream */
    int bad; /* a CRC or a fragment is wrong */
} lr_msg;

typedef struct lr {
    const uint8_t *p;
    size_t size;
    uint32_t seed;
    uint64_t floor, slot_synced, slot_counter;
    uint64_t synced; /* D, of the header and the batches in the row */
    size_t end;      /* behind the last batch of the row */
    lr_batch batch[LR_BATCHES];
    int batches;
    lr_msg msg[LR_MSGS];
    int msgs;
    int fragments, acks, unknown, tries, notes;
    uint64_t checkpoint, state, opened, opened_random, seen; /* the last of each */
    const char *wrong; /* why this is no log */
} lr;

static inline uint64_t lr_int(const uint8_t *p, int n) {
    uint64_t v = 0;
    while (n-- > 0) v = v << 8 | *p++;
    return v;
}

/* RFC 3720 B.4, bit by bit; `before` is the CRC of what came before, 0 for nothing. */
static inline uint32_t lr_crc(uint32_t before, const uint8_t *p, size_t n) {
    static uint32_t table[256];
    uint32_t c = ~before, i;
    int k;
    if (table[1] == 0) {
        for (i = 0; i < 256; i++) {
            table[i] = i;
            for (k = 0; k < 8; k++) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0x82f63b78u : 0);
        }
    }
    while (n-- > 0) c = c >> 8 ^ table[(c ^ *p++) & 255];
    return ~c;
}

/* The CRC of n bytes, of which the four at `hole` count as zero. */
static inline uint32_t lr_crc_hole(uint32_t seed, const uint8_t *p, size_t n, size_t hole) {
    static const uint8_t zero[4] = {0, 0, 0, 0};
    uint32_t c = lr_crc(seed, p, hole);
    return lr_crc(lr_crc(c, zero, 4), p + hole + 4, n - hole - 4);
}

static inline int lr_slot(const uint8_t *s) {
    size_t size = (size_t)lr_int(s + 12, 4);
    return memcmp(s, "OPCLOG\r\n", 8) == 0 && size >= 512 && size <= 2048 &&
           lr_int(s + size - 4, 4) == lr_crc(0, s, size - 4);
}

static inline int lr_batch_valid(const lr *r, size_t at) {
    const uint8_t *b = r->p + at;
    size_t len;
    if (r->size - at < 48 || memcmp(b, "OPCB", 4) != 0) return 0;
    len = (size_t)lr_int(b + 4, 4);
    return len >= 48 && len <= 1048576 && len <= r->size - at && lr_int(b + 16, 8) == at &&
           lr_int(b + 32, 8) <= at && lr_int(b + 44, 4) == lr_crc_hole(r->seed, b, 44, 8) &&
           lr_int(b + 8, 4) == lr_crc_hole(r->seed, b, len, 8);
}

/* Byte i of a message's payload. */
static inline uint8_t lr_byte(const lr *r, const lr_msg *m, uint64_t i) {
    const uint8_t *b = m->body;
    if (m->frags == 0) return b[m->fixed + m->dest_len + m->context_len + i];
    return r->p[lr_int(b + m->fixed + 8 * (i / 16384), 8) + 16 + i % 16384];
}

static inline void lr_message(lr *r, size_t at, const uint8_t *b, size_t n) {
    lr_msg *m = &r->msg[r->msgs++];
    size_t head, i;
    uint64_t left;
    memset(m, 0, sizeof *m);
    m->type = b[-8];
    m->fixed = m->type == 1 ? 84 : m->type == 12 ? 108 : 136;
    if (n < m->fixed) {
        m->bad = 1;
        return;
    }
    if (m->type == 12) m->number = r->seen = lr_int(b + 100, 8);
    if (m->type == 4) m->context_len = (uint32_t)lr_int(b + 106, 2);
    m->at = at;
    m->body = b;
    m->from = b;
    m->flags = b[34];
    m->dest_len = (uint32_t)lr_int(b + 36, 4);
    m->uid = lr_int(b + 40, 8);
    m->bytes = lr_int(b + 48, 8);
    m->wire_bytes = lr_int(b + 56, 8);
    m->time = lr_int(b + 64, 8);
    m->frags = (uint32_t)lr_int(b + 72, 4);
    m->dest = b + m->fixed + 8 * m->frags;
    m->context = m->dest + m->dest_len;
    head = m->fixed + 8 * m->frags + m->dest_len + m->context_len;
    m->bad = head > n || lr_int(b + 80, 4) != lr_crc_hole(r->seed, b, head, 80);
    if (m->bad) return;
    if (m->frags == 0) {
        m->bad = n - head != m->bytes ||
                 (m->bytes > 0 && lr_int(b + 76, 4) != lr_crc(r->seed, b + head, n - head));
        return;
    }
    for (i = 0, left = m->bytes; i < m->frags; i++) {
        size_t f = (size_t)lr_int(b + m->fixed + 8 * i, 8), len;
        const uint8_t *p = r->p + f;
        if (f >= r->size || p[0] != 2) {
            m->bad = 1;
            return;
        }
        len = (size_t)lr_int(p + 4, 4) - 8;
        if (len > left || (len != 16384 && i + 1 < m->frags) || len == 0 ||
            lr_int(p + 8, 4) != lr_crc(r->seed, p + 16, len)) {
            m->bad = 1;
        }
        left -= len;
    }
    if (left != 0) m->bad = 1;
}

static inline void lr_operations(lr *r, const lr_batch *b) {
    size_t at = b->at + 48, end = b->at + b->len;
    uint32_t i;
    int k;
    for (i = 0; i < b->ops; i++) {
        const uint8_t *op = r->p + at;
        size_t n;
        if (end - at < 8 || (n = (size_t)lr_int(op + 4, 4)) > end - at - 8) {
            r->wrong = "an operation leaves its batch";
            return;
        }
        if ((op[0] >= 4 && op[0] <= 8) || op[0] == 12) {
            if (!(b->flags & 0x10000)) r->wrong = "a batch without the mark of format 1.1";
        }
        if (op[0] == 1 || op[0] == 4 || op[0] == 12) {
            if (r->msgs == LR_MSGS || n < 84 ||
                (r->msgs > 0 && r->msg[r->msgs - 1].uid >= lr_int(op + 48, 8))) {
                r->wrong = "message";
                return;
            }
            lr_message(r, at, op + 8, n);
        } else if (op[0] == 2) {
            r->fragments++;
        } else if (op[0] == 3 || op[0] == 5 || op[0] == 8) {
            if (n != (op[0] == 3 ? 8u : 16u)) r->wrong = "an end";
            r->acks++;
            for (k = 0; k < r->msgs; k++) {
                if (r->msg[k].uid != lr_int(op + 8, 8) || r->msg[k].acked) continue;
                r->msg[k].acked = 1;
                r->msg[k].acked_at = at;
            }
        } else if (op[0] == 6 || op[0] == 7) {
            if (n != 32) r->wrong = "a try";
            r->tries++;
            for (k = 0; k < r->msgs; k++) {
                if (r->msg[k].uid != lr_int(op + 8, 8)) continue;
                r->msg[k].attempts = (uint32_t)lr_int(op + 16, 4);
                r->msg[k].dead = op[0] == 7;
            }
        } else if (op[0] == 9 || op[0] == 10 || op[0] == 13 || op[0] == 14) {
            r->notes++;
            if (op[0] == 9 && n == 16 && r->seen < lr_int(op + 8, 8)) r->seen = lr_int(op + 8, 8);
            if (op[0] == 10 && n >= 8) r->state = lr_int(op + 8, 8);
            if (op[0] == 14) {
                if (n != 40) r->wrong = "an opening";
                r->opened = lr_int(op + 8, 8);
                r->opened_random = lr_int(op + 16, 8);
            }
        } else if (op[0] == 11) {
            if (n < 8) r->wrong = "a checkpoint";
            r->checkpoint = lr_int(op + 8, 8);
        } else {
            r->unknown++;
        }
        at += 8 + n;
    }
    if (at != end) r->wrong = "bytes behind the operations";
}

static inline void lr_read(lr *r, const uint8_t *p, size_t size) {
    const uint8_t *slot = NULL;
    size_t i;
    memset(r, 0, offsetof(lr, batch));
    r->msgs = r->batches = r->fragments = r->acks = r->unknown = r->tries = r->notes = 0;
    r->checkpoint = r->state = r->opened = r->opened_random = r->seen = 0;
    r->wrong = NULL;
    r->p = p;
    r->size = size;
    if (size < 4096) {
        r->wrong = "too short";
        return;
    }
    for (i = 0; i < 4096; i += 2048) {
        if (!lr_slot(p + i)) continue;
        if (slot == NULL || lr_int(p + i + 16, 8) > lr_int(slot + 16, 8)) slot = p + i;
    }
    if (slot == NULL || lr_int(slot + 8, 2) != 1) { /* any minor version */
        r->wrong = "header";
        return;
    }
    r->seed = lr_crc(0, slot + 80, 32);
    r->slot_counter = lr_int(slot + 24, 8);
    r->floor = lr_int(slot + 112, 8);
    r->slot_synced = r->synced = lr_int(slot + 120, 8);
    for (i = 4096; lr_batch_valid(r, i) && r->batches < LR_BATCHES;) {
        lr_batch *b = &r->batch[r->batches];
        b->at = i;
        b->len = (size_t)lr_int(p + i + 4, 4);
        b->ops = (uint32_t)lr_int(p + i + 12, 4);
        b->counter = lr_int(p + i + 24, 8);
        b->synced = lr_int(p + i + 32, 8);
        b->flags = (uint32_t)lr_int(p + i + 40, 4);
        if (r->batches > 0 && b->counter < r->batch[r->batches - 1].counter) break;
        if (b->synced > r->synced) r->synced = b->synced;
        lr_operations(r, b);
        if (r->wrong != NULL) return;
        r->batches++;
        i += b->len;
    }
    r->end = i;
}

#endif
