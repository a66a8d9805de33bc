/* The table of all messages, and the unread ones by destination. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "model.h"

static opc__items items;
static opc__mailbox box;

static const uint8_t own[32] = {7};
static char own_text[65];

static void begin(uint32_t messages, uint32_t depth, uint32_t foreign) {
    mem_begin();
    opc__items_init(&items, &mem);
    opc__mailbox_init(&box, &mem, &items, own, messages, depth, foreign);
    opc__str_hash_write(own, own_text);
}

static void end(void) {
    opc__mailbox_free(&box);
    opc__items_free(&items);
    CHECK_EQ(mem.used, 0);
}

static uint32_t open_box(const char *dest, uint8_t id) {
    uint32_t b = 0;
    CHECK_EQ(opc__mailbox_open(&box, (const uint8_t *)dest, (uint32_t)strlen(dest), id, &b),
             OPCOMMS_OK);
    return b;
}

static opcomms_err put(uint32_t b, uint8_t tag, uint64_t uid, uint64_t position) {
    uint8_t from[32];
    opcomms_err rc;
    memset(from, tag, 32);
    rc = opc__mailbox_reserve(&box, b, from);
    if (rc == OPCOMMS_OK) opc__mailbox_add(&box, b, from, uid, uid * 10, position, 5);
    return rc;
}

/* ---- the table ---- */

TEST(what_was_added_is_found_by_its_number_and_nothing_else_is) {
    uint64_t uid;
    uint32_t i;
    begin(0, 0, 0);
    CHECK_EQ(opc__items_find(&items, 1), OPC__ITEMS_NONE); /* nothing was ever added */
    for (uid = 1; uid <= 3000; uid++) {
        CHECK_EQ(opc__items_reserve(&items, 1), OPCOMMS_OK);
        i = opc__items_add(&items, OPC__KIND_IN, uid << 20, uid + 5, uid + 7, uid);
        CHECK_EQ(opc__items_find(&items, uid << 20), i);
    }
    for (uid = 1; uid <= 3000; uid++) {
        i = opc__items_find(&items, uid << 20);
        CHECK(i != OPC__ITEMS_NONE);
        CHECK_EQ(opc__items_ref(&items, i), uid + 5);
        CHECK_EQ(opc__items_at(&items, i)->position, uid + 7);
        CHECK_EQ(opc__items_at(&items, i)->bytes, uid);
        CHECK_EQ(opc__items_find(&items, (uid << 20) + 1), OPC__ITEMS_NONE);
    }
    CHECK_EQ(opc__items_find(&items, 0), OPC__ITEMS_NONE);
    end();
}

TEST(a_message_costs_at_most_64_bytes) {
    uint64_t uid;
    uint32_t most = 0, k;
    begin(0, 0, 0);
    for (uid = 1; uid <= 100000; uid++) {
        CHECK_EQ(opc__items_reserve(&items, 1), OPCOMMS_OK);
        (void)opc__items_add(&items, OPC__KIND_IN, uid * 256, 1, 1, 1);
        if (uid >= 5000 && mem.used > uid * 64) break;
    }
    CHECK_EQ(uid, 100001);
    for (k = 0; k < items.split; k++) { /* and numbers with a pattern spread all the same */
        uint32_t i = *(uint32_t *)opc__pieces_at(&items.buckets, k), n = 0;
        while (i != OPC__ITEMS_NONE) {
            n++;
            i = opc__items_at(&items, i)->hash_next;
        }
        if (n > most) most = n;
    }
    CHECK(most <= 16);
    end();
}

TEST(a_message_too_large_for_its_field_is_said_to_be_at_least_so_large) {
    begin(0, 0, 0);
    CHECK_EQ(opc__items_reserve(&items, 2), OPCOMMS_OK);
    CHECK_EQ(opc__items_at(&items, opc__items_add(&items, 0, 1, 0, 0, 0x0ffffffe))->bytes,
             0x0ffffffe);
    CHECK_EQ(opc__items_at(&items, opc__items_add(&items, 0, 2, 0, 0, UINT64_MAX))->bytes,
             OPC__ITEMS_BYTES_MAX);
    end();
}

TEST(what_was_reserved_can_be_added_and_out_of_memory_changes_nothing) {
    uint32_t k;
    begin(0, 0, 0);
    CHECK_EQ(opc__items_reserve(&items, 1000), OPCOMMS_OK);
    allocs_left = 0;
    for (k = 1; k <= 1000; k++) (void)opc__items_add(&items, 0, k, 0, 0, 0);
    CHECK_EQ(opc__items_reserve(&items, 24), OPCOMMS_OK); /* pieces of 256 */
    CHECK_EQ(opc__items_reserve(&items, 25), OPCOMMS_E_NOMEM);
    CHECK_EQ(items.count, 1000);
    for (allocs_left = 1; allocs_left < 4; allocs_left++) {
        long was = allocs_left;
        opcomms_err rc = opc__items_reserve(&items, items.free_count + 1);
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_NOMEM);
        for (k = 1; k <= 1000; k++) CHECK(opc__items_find(&items, k) != OPC__ITEMS_NONE);
        allocs_left = was;
    }
    end();
}

TEST(compaction_switches_all_places_at_once_or_none) {
    uint32_t k;
    begin(0, 0, 0);
    CHECK_EQ(opc__items_reserve(&items, 600), OPCOMMS_OK);
    for (k = 1; k <= 500; k++) (void)opc__items_add(&items, 0, k, k, 0, 0);
    for (k = 1; k <= 300; k++) opc__items_moved(&items, k, k + 1000);
    opc__items_moved(&items, 7777, 1); /* is over: no harm */
    opc__items_switched(&items, 0);
    for (k = 1; k <= 500; k++) CHECK_EQ(opc__items_ref(&items, opc__items_find(&items, k)), k);
    for (k = 1; k <= 500; k++) {
        CHECK(opc__items_live(&items, k));
        opc__items_moved(&items, k, k + 2000);
        if (k % 5 == 0) opc__items_remove(&items, opc__items_find(&items, k));
    }
    CHECK(!opc__items_live(&items, 5));
    (void)opc__items_add(&items, 0, 501, 501, 0, 0); /* meanwhile */
    CHECK_EQ(opc__items_ref(&items, opc__items_find(&items, 501)), 501);
    opc__items_moved(&items, 501, 1);
    opc__items_moved(&items, 501, 2501); /* told again: the last counts */
    CHECK_EQ(opc__items_ref(&items, opc__items_find(&items, 4)), 4);
    opc__items_switched(&items, 1);
    for (k = 1; k <= 501; k++) {
        uint32_t i = opc__items_find(&items, k);
        CHECK_EQ(i == OPC__ITEMS_NONE, k % 5 == 0 && k <= 500);
        if (i != OPC__ITEMS_NONE) CHECK_EQ(opc__items_ref(&items, i), k + 2000);
    }
    (void)opc__items_add(&items, 0, 600, 600, 0, 0);
    CHECK_EQ(opc__items_ref(&items, opc__items_find(&items, 600)), 600);
    for (k = 1; k <= 600; k++) opc__items_moved(&items, k, k + 3000); /* and once more */
    opc__items_switched(&items, 1);
    CHECK_EQ(opc__items_ref(&items, opc__items_find(&items, 1)), 3001);
    CHECK_EQ(opc__items_ref(&items, opc__items_find(&items, 600)), 3600);
    end();
}

/* ---- the mailbox ---- */

TEST(a_box_hands_out_the_oldest_visible_message) {
    uint32_t b, c, i;
    begin(100, 100, 5);
    b = open_box(own_text, 0);
    c = open_box("another", 0);
    CHECK(b != c);
    CHECK_EQ(open_box(own_text, 0), b);
    CHECK_EQ(opc__mailbox_oldest(&box, b, 100, 1), OPC__MAILBOX_NONE);
    CHECK_EQ(put(b, 1, 1, 10), OPCOMMS_OK);
    CHECK_EQ(put(c, 1, 2, 20), OPCOMMS_OK);
    CHECK_EQ(put(b, 2, 3, 30), OPCOMMS_OK);
    CHECK_EQ(opc__mailbox_oldest(&box, b, 9, 1), OPC__MAILBOX_NONE);
    i = opc__mailbox_oldest(&box, b, 10, 1);
    CHECK_EQ(opc__items_at(&items, i)->uid, 1);
    opc__items_at(&items, i)->out = 1;
    CHECK_EQ(opc__mailbox_oldest(&box, b, 10, 0), i);
    CHECK_EQ(opc__mailbox_oldest(&box, b, 29, 1), OPC__MAILBOX_NONE);
    i = opc__mailbox_oldest(&box, b, 30, 1);
    CHECK_EQ(opc__items_at(&items, i)->uid, 3);
    opc__mailbox_remove(&box, i);
    CHECK_EQ(opc__items_find(&items, 3), OPC__ITEMS_NONE);
    CHECK_EQ(box.count, 2);
    CHECK_EQ(opc__mailbox_oldest(&box, OPC__MAILBOX_NONE, 30, 1), OPC__MAILBOX_NONE);
    end();
}

TEST(a_number_is_found_in_its_own_box_only_and_when_visible) {
    uint32_t b, c;
    begin(100, 100, 5);
    b = open_box(own_text, 0);
    c = open_box(own_text, 1);
    CHECK_EQ(put(b, 1, 8, 10), OPCOMMS_OK);
    CHECK(opc__mailbox_by_uid(&box, b, 10, 8) != OPC__MAILBOX_NONE);
    CHECK_EQ(opc__mailbox_by_uid(&box, b, 9, 8), OPC__MAILBOX_NONE);
    CHECK_EQ(opc__mailbox_by_uid(&box, c, 10, 8), OPC__MAILBOX_NONE);
    CHECK_EQ(opc__mailbox_by_uid(&box, OPC__MAILBOX_NONE, 10, 8), OPC__MAILBOX_NONE);
    CHECK_EQ(opc__mailbox_by_uid(&box, b, 10, 7), OPC__MAILBOX_NONE);
    CHECK_EQ(opc__items_reserve(&items, 1), OPCOMMS_OK); /* nor one that is not mail */
    (void)opc__items_add(&items, OPC__KIND_OUT, 9, 0, 0, 0);
    CHECK_EQ(opc__mailbox_by_uid(&box, b, 10, 9), OPC__MAILBOX_NONE);
    end();
}

TEST(depth_and_total_are_limits_and_an_emptied_box_serves_another) {
    uint32_t b, c, i;
    begin(4, 2, 1);
    b = open_box(own_text, 0);
    CHECK_EQ(put(b, 1, 1, 0), OPCOMMS_OK);
    CHECK_EQ(put(b, 1, 2, 0), OPCOMMS_OK);
    CHECK_EQ(put(b, 1, 3, 0), OPCOMMS_E_FULL); /* of one sender */
    CHECK_EQ(put(b, 2, 3, 0), OPCOMMS_OK);
    c = open_box("c", 0);
    CHECK_EQ(put(c, 1, 4, 0), OPCOMMS_OK);
    CHECK_EQ(put(c, 2, 5, 0), OPCOMMS_E_FULL); /* in all */
    CHECK_EQ(opc__mailbox_open(&box, (const uint8_t *)"d", 1, 0, &i), OPCOMMS_E_LIMIT);
    opc__mailbox_remove(&box, opc__items_find(&items, 4));
    CHECK_EQ(open_box("d", 0), c);
    CHECK_EQ(put(c, 1, 6, 0), OPCOMMS_OK);
    end();
}

/* ---- both against a model ---- */

enum { BOXES = 5, SENDERS = 4, MOST = 600 };
static struct {
    uint64_t uid, position, ref, moved;
    uint32_t box, sender;
    int out;
} m[MOST]; /* in the order of coming */
static uint32_t count;

static void model_remove(uint32_t k) {
    memmove(&m[k], &m[k + 1], (size_t)(count - k - 1) * sizeof m[0]);
    count--;
}

static uint32_t model_depth(uint32_t b, uint32_t sender) {
    uint32_t k, n = 0;
    for (k = 0; k < count; k++) n += m[k].box == b && m[k].sender == sender;
    return n;
}

static void model_compare(const uint32_t *boxes, uint64_t visible) {
    uint32_t b, k, i;
    int skip;
    CHECK_EQ(box.count, count);
    CHECK_EQ(items.count, count);
    for (b = 0; b < BOXES; b++) {
        for (skip = 0; skip < 2; skip++) {
            for (k = 0; k < count; k++) {
                if (m[k].box == b && (!skip || !m[k].out || m[k].position > visible)) break;
            }
            i = opc__mailbox_oldest(&box, boxes[b], visible, skip);
            CHECK_EQ(i == OPC__MAILBOX_NONE, k == count || m[k].position > visible);
            if (i == OPC__MAILBOX_NONE) continue;
            CHECK_EQ(opc__items_at(&items, i)->uid, m[k].uid);
            CHECK_EQ(opc__items_ref(&items, i), m[k].ref);
        }
    }
}

TEST(random_operations_agree_with_a_simple_model) {
    uint32_t boxes[BOXES], step, k, i, all;
    uint64_t uid = 0, position = 0, visible = 0;
    begin(MOST, 40, BOXES);
    for (k = 0; k < BOXES; k++) boxes[k] = open_box(own_text, (uint8_t)k);
    count = 0;
    for (step = 0; step < 100000 && test_bad == 0; step++) {
        uint32_t what = rnd(100), b = rnd(BOXES), s = rnd(SENDERS);
        /* 2 000 steps of growth, then 2 000 of shrinking, and so on */
        if (what < ((step / 2000) % 2 ? 25u : 45u)) {
            uint64_t fresh = uid + 1 + (rnd(50) == 0 ? 1u << 20 : rnd(3));
            opcomms_err rc = put(boxes[b], (uint8_t)s, fresh, position + 1);
            CHECK_EQ(rc, count >= MOST || model_depth(b, s) >= 40 ? OPCOMMS_E_FULL : OPCOMMS_OK);
            if (rc != OPCOMMS_OK) continue;
            uid = fresh;
            memset(&m[count], 0, sizeof m[0]);
            m[count].uid = uid;
            m[count].ref = uid * 10;
            m[count].position = ++position;
            m[count].box = b;
            m[count++].sender = s;
        } else if (what < 60 && count > 0) {
            k = rnd(3) ? rnd(count < 5 ? count : 5) : rnd(count);
            i = opc__mailbox_by_uid(&box, boxes[m[k].box], position, m[k].uid);
            CHECK(i != OPC__MAILBOX_NONE);
            if (i == OPC__MAILBOX_NONE) break;
            opc__mailbox_remove(&box, i);
            model_remove(k);
        } else if (what < 75 && count > 0) {
            k = rnd(count);
            m[k].out = !m[k].out;
            opc__items_at(&items, opc__items_find(&items, m[k].uid))->out = (uint32_t)m[k].out & 1u;
        } else if (what < 90) {
            visible += rnd((uint32_t)(position - visible) + 1);
        } else if (what < 98 && count > 0) {
            k = rnd(count);
            m[k].moved = step + 1000000u;
            opc__items_moved(&items, m[k].uid, m[k].moved);
        } else {
            all = rnd(2);
            for (k = 0; k < count; k++) {
                if (all && m[k].moved == 0) {
                    m[k].moved = step + k;
                    opc__items_moved(&items, m[k].uid, m[k].moved);
                }
                if (all) m[k].ref = m[k].moved;
                m[k].moved = 0;
            }
            opc__items_switched(&items, (int)all);
        }
        if (step % 20 == 0) model_compare(boxes, visible);
    }
    CHECK_EQ(step, 100000);
    end();
}

int main(void) {
    RUN(what_was_added_is_found_by_its_number_and_nothing_else_is);
    RUN(a_message_costs_at_most_64_bytes);
    RUN(a_message_too_large_for_its_field_is_said_to_be_at_least_so_large);
    RUN(what_was_reserved_can_be_added_and_out_of_memory_changes_nothing);
    RUN(compaction_switches_all_places_at_once_or_none);
    RUN(a_box_hands_out_the_oldest_visible_message);
    RUN(a_number_is_found_in_its_own_box_only_and_when_visible);
    RUN(depth_and_total_are_limits_and_an_emptied_box_serves_another);
    RUN(random_operations_agree_with_a_simple_model);
    return test_end();
}
