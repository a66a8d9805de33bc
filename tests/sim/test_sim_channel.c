/* Kept connections that went away without a word, and the broker channel over them. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "fake.h"
#include "peers.h"

#define SECOND 1000000u

/* From now on whatever is written on this connection vanishes, in both directions. */
static void lose(fake_conn *c) {
    int way;
    for (way = 0; way < 2; way++) {
        c->wire.cut[way].at = c->pipe[way].sent;
        c->wire.cut[way].how = FAKE_STALL;
    }
}

TEST(a_connection_lost_in_silence_is_found_out_before_a_message_goes_into_it) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    uint64_t start;
    sim_pair(&s, 11, &a, &b);
    CHECK_EQ(sim_send(a, b, "1", 1, 0, &err), OPCOMMS_OK);
    sim_run(&s, 31 * SECOND);
    lose(s.w.conn[0]);
    start = s.w.now_us;
    CHECK_EQ(sim_send(a, b, "2", 1, 0, &err), OPCOMMS_OK); /* over a new connection */
    CHECK(s.w.now_us - start >= 2 * SECOND);
    CHECK(s.w.now_us - start < 3 * SECOND);
    CHECK_EQ(sim_stats(b).messages_in, 2); /* once */
    CHECK_EQ(sim_stats(b).accepted, 2);
    sim_end(&s);
}

TEST(a_connection_that_lives_is_asked_and_used_on) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    int i;
    sim_pair(&s, 12, &a, &b);
    for (i = 0; i < 5; i++) {
        CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
        sim_run(&s, 40 * SECOND);
    }
    CHECK_EQ(sim_stats(b).accepted, 1);
    CHECK_EQ(sim_stats(b).messages_in, 5);
    sim_end(&s);
}

TEST(a_call_shorter_than_the_question_gives_up_and_the_next_one_works) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    sim_pair(&s, 13, &a, &b);
    CHECK_EQ(sim_send(a, b, "1", 1, 0, &err), OPCOMMS_OK);
    sim_run(&s, 31 * SECOND);
    lose(s.w.conn[0]);
    CHECK_EQ(sim_send(a, b, "2", 1, 300, &err), OPCOMMS_E_TIMEOUT); /* it never left */
    CHECK_EQ(sim_send(a, b, "3", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(sim_stats(b).messages_in, 2);
    sim_end(&s);
}

TEST(sessions_are_resumed_on_the_wire_and_not_beyond_an_hour) {
    sim s;
    sim_peer *a, *b;
    opcomms_error err;
    int i;
    sim_pair(&s, 14, &a, &b);
    for (i = 0; i < 12; i++) { /* every six minutes: the connection was idle for too long */
        CHECK_EQ(sim_send(a, b, "x", 1, 0, &err), OPCOMMS_OK);
        sim_run(&s, 360 * SECOND);
    }
    CHECK_EQ(sim_stats(b).accepted, 12);
    CHECK_EQ(sim_stats(b).handshakes, 12);
    CHECK_EQ(sim_stats(b).resumed, 10); /* the first, and the one after the hour, are full */
    sim_end(&s);
}

TEST(a_channel_fetches_byte_by_byte_over_a_slow_wire) {
    sim s;
    sim_peer *a, *b;
    opcomms_client *c = NULL;
    opcomms_mail mail;
    opcomms_identifier to;
    opcomms_error err;
    char back[300], data[300];
    int i;
    sim_pair(&s, 15, &a, &b);
    s.w.wire.piece_max = 1;
    for (i = 0; i < 300; i++) data[i] = (char)(i * 7);
    memset(&to, 0, sizeof to);
    strcpy(to.hash, b->hash);
    to.id = 3;
    CHECK_EQ(opcomms_client_open(a->peer, b->hash, b->address, &c, &err), OPCOMMS_OK);
    a->busy++;
    CHECK_EQ(opcomms_client_send(c, 4, &to, data, 300, 0, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_client_get(c, 0, &mail, back, 300, 0, &err), OPCOMMS_E_EMPTY);
    a->busy--;
    CHECK_EQ(opcomms_local_recv(b->peer, 3, &mail, back, 300, &err), OPCOMMS_OK);
    CHECK(mail.bytes == 300 && memcmp(back, data, 300) == 0 && mail.from.id == 4);
    CHECK_STR(mail.from.hash, a->hash);
    opcomms_client_close(c);
    sim_end(&s);
}

int main(void) {
    RUN(a_connection_lost_in_silence_is_found_out_before_a_message_goes_into_it);
    RUN(a_connection_that_lives_is_asked_and_used_on);
    RUN(a_call_shorter_than_the_question_gives_up_and_the_next_one_works);
    RUN(sessions_are_resumed_on_the_wire_and_not_beyond_an_hour);
    RUN(a_channel_fetches_byte_by_byte_over_a_slow_wire);
    return test_end();
}
