/* The broker channel: mailboxes at a server, over the network and in the server's own process. */
#include "party.h"

static opcomms_client *channel;
static opcomms_identifier box;

/* b is a mailbox server for third parties too, with whatever else `change` sets. */
static void server(void (*change)(opcomms_config *cfg)) {
    opcomms_config cfg;
    opcomms_error err;
    both(OPCOMMS_KEY_P256);
    opcomms_free(b.peer);
    opcomms_config_init(&cfg);
    cfg.address = "127.0.0.1:0";
    cfg.key_pem = b.pem;
    cfg.key_pem_bytes = b.pem_len;
    cfg.allow = b.allow;
    cfg.routes = b.routes;
    cfg.log_path = b.log;
    cfg.mailboxes_max = 4;
    if (change != NULL) change(&cfg);
    CHECK_EQ(opcomms_new(&cfg, &b.peer, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_get_address(b.peer, b.address, sizeof b.address), OPCOMMS_OK);
    CHECK_EQ(opcomms_client_open(a.peer, b.hash, b.address, &channel, &err), OPCOMMS_OK);
    memset(&box, 0, sizeof box);
    strcpy(box.hash, a.hash);
}

static void done(void) {
    opcomms_client_close(channel);
    end(&a);
    end(&b);
}

TEST(every_call_has_both_outcomes) {
    opcomms_mail mail;
    opcomms_error err;
    char text[16];
    server(NULL);
    box.id = 7;
    CHECK_EQ(opcomms_client_ping(channel, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_client_get(channel, 7, &mail, text, 16, 0, &err), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_client_ack(channel, 7, 1, 0, &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_client_send(channel, 3, &box, "one", 3, 0, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_client_send(channel, 4, &box, "two", 3, 0, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_client_get(channel, 7, &mail, text, 2, 0, &err), OPCOMMS_E_BUFFER);
    CHECK_EQ(mail.bytes, 3);
    CHECK_EQ(opcomms_client_get(channel, 7, &mail, text, 16, 0, &err), OPCOMMS_OK);
    CHECK(mail.bytes == 3 && memcmp(text, "one", 3) == 0 && mail.flags == 0);
    CHECK_STR(mail.from.hash, a.hash);
    CHECK_EQ(mail.from.id, 3);
    CHECK_EQ(opcomms_client_get(channel, 0, &mail, text, 16, 0, &err), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_client_recv(channel, 7, &mail, text, 16, 0, &err), OPCOMMS_OK);
    CHECK(memcmp(text, "one", 3) == 0);
    CHECK_EQ(opcomms_client_ack(channel, 7, mail.uid, 0, &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_client_recv(channel, 7, &mail, text, 16, 0, &err), OPCOMMS_OK);
    CHECK(memcmp(text, "two", 3) == 0 && mail.from.id == 4);
    CHECK_EQ(opcomms_client_recv(channel, 7, &mail, text, 16, 0, &err), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_routing_table_allow_all(b.routes, 0), OPCOMMS_OK);
    CHECK_EQ(opcomms_client_send(channel, 3, &box, "no", 2, 0, 0, &err), OPCOMMS_E_ROUTE);
    strcpy(box.hash, "abc");
    CHECK_EQ(opcomms_client_send(channel, 3, &box, "no", 2, 0, 0, &err), OPCOMMS_E_INVAL);
    done();
}

TEST(text_and_bytes_come_back_as_what_they_were) {
    static const char *texts[] = {"",
                                  "[",
                                  "[]",
                                  "[1,2,3]",
                                  "[1,2,3",
                                  "[1,2,256]",
                                  "[1,02]",
                                  "[1, 2]",
                                  "plain \"quoted\" \\ \n\x01 text",
                                  "[12,250,7,x",
                                  "[]]",
                                  "[0,0,"};
    opcomms_mail mail;
    opcomms_error err;
    char *back = (char *)malloc(70000), *data = (char *)malloc(70000);
    size_t i, k;
    server(NULL);
    for (i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        size_t len = strlen(texts[i]);
        int array = strcmp(texts[i], "[]") == 0 || strcmp(texts[i], "[1,2,3]") == 0;
        CHECK_EQ(
            opcomms_client_send(channel, 0, &box, texts[i], len, OPCOMMS_MESSAGE_TEXT, 0, &err),
            OPCOMMS_OK);
        CHECK_EQ(opcomms_client_recv(channel, 0, &mail, back, 70000, 0, &err), OPCOMMS_OK);
        if (array) { /* the text of a byte array stands for its bytes */
            CHECK(mail.flags == 0 && mail.bytes == (len == 2 ? 0u : 3u));
        } else {
            CHECK_EQ(mail.flags, OPCOMMS_MESSAGE_TEXT);
            CHECK(mail.bytes == len && memcmp(back, texts[i], len) == 0);
        }
    }
    for (k = 0; k < 70000; k++) data[k] = (char)(k * 7 + k / 256);
    for (i = 1; i < 70000; i = i * 3 + 1) {
        CHECK_EQ(opcomms_client_send(channel, 0, &box, data, i, 0, 0, &err), OPCOMMS_OK);
        CHECK_EQ(opcomms_client_recv(channel, 0, &mail, back, i, 0, &err), OPCOMMS_OK);
        CHECK(mail.bytes == i && memcmp(back, data, i) == 0 && mail.flags == 0);
    }
    /* a long text that is no array at its very end: everything fetched as bytes turns into text */
    data[0] = '[';
    for (k = 1; k + 4 < 60000; k += 4) memcpy(data + k, "199,", 4);
    CHECK_EQ(opcomms_client_send(channel, 0, &box, data, k, OPCOMMS_MESSAGE_TEXT, 0, &err),
             OPCOMMS_OK);
    CHECK_EQ(opcomms_client_get(channel, 0, &mail, back, k - 1, 0, &err), OPCOMMS_E_BUFFER);
    CHECK_EQ(mail.bytes, k);
    CHECK_EQ(opcomms_client_recv(channel, 0, &mail, back, k, 0, &err), OPCOMMS_OK);
    CHECK(mail.bytes == k && memcmp(back, data, k) == 0 && mail.flags == OPCOMMS_MESSAGE_TEXT);
    CHECK_EQ(opcomms_client_send(channel, 0, &box, "\xff", 1, OPCOMMS_MESSAGE_TEXT, 0, &err),
             OPCOMMS_E_INVAL);
    free(back);
    free(data);
    done();
}

static void *fetch_all(void *arg) {
    opcomms_mail mail;
    opcomms_error err;
    char text[64];
    size_t count = 0;
    opcomms_err rc;
    (void)arg;
    while ((rc = opcomms_client_get(channel, 9, &mail, text, sizeof text, 0, &err)) == OPCOMMS_OK) {
        if (mail.bytes != 50 || text[0] != text[49]) return (void *)1000;
        rc = opcomms_client_ack(channel, 9, mail.uid, 0, &err);
        if (rc == OPCOMMS_OK) count++;
        if (rc != OPCOMMS_OK && rc != OPCOMMS_E_NOT_FOUND) return (void *)1000;
    }
    return rc == OPCOMMS_E_EMPTY ? (void *)count : (void *)1000;
}

TEST(a_channel_serves_several_threads) {
    pthread_t t[4];
    opcomms_error err;
    size_t i, sum = 0;
    char text[50];
    server(NULL);
    box.id = 9;
    for (i = 0; i < 60; i++) {
        memset(text, (int)i, sizeof text);
        CHECK_EQ(opcomms_client_send(channel, 0, &box, text, sizeof text, 0, 0, &err), OPCOMMS_OK);
    }
    for (i = 0; i < 4; i++) CHECK_EQ(pthread_create(&t[i], NULL, fetch_all, NULL), 0);
    for (i = 0; i < 4; i++) {
        void *count = NULL;
        CHECK_EQ(pthread_join(t[i], &count), 0);
        sum += (size_t)count;
    }
    CHECK_EQ(sum, 60); /* each acknowledged once, by whoever was first */
    done();
}

TEST(a_channel_opens_again_after_the_server_restarted) {
    opcomms_mail mail;
    opcomms_error err;
    char text[16];
    server(NULL);
    CHECK_EQ(opcomms_client_send(channel, 0, &box, "kept", 4, 0, 0, &err), OPCOMMS_OK);
    opcomms_free(b.peer);
    CHECK_EQ(opcomms_client_get(channel, 0, &mail, text, 16, 0, &err), OPCOMMS_E_CONNECT);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_client_recv(channel, 0, &mail, text, 16, 0, &err), OPCOMMS_OK);
    CHECK(mail.bytes == 4 && memcmp(text, "kept", 4) == 0);
    done();
}

TEST(mail_for_third_parties_is_opted_into_and_capped) {
    opcomms_mail mail;
    opcomms_error err;
    char text[16];
    int i;
    server(NULL);
    for (i = 0; i < 4; i++) {
        memset(box.hash, '0' + i, 64);
        CHECK_EQ(opcomms_client_send(channel, 0, &box, "x", 1, 0, 0, &err), OPCOMMS_OK);
    }
    strcpy(box.hash, a.hash);
    CHECK_EQ(opcomms_client_send(channel, 0, &box, "x", 1, 0, 0, &err), OPCOMMS_E_REMOTE);
    strcpy(box.hash, b.hash); /* its own mail is not counted */
    CHECK_EQ(opcomms_client_send(channel, 0, &box, "own", 3, 0, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_local_recv(b.peer, 0, &mail, text, 16, &err), OPCOMMS_OK);
    CHECK_STR(mail.from.hash, a.hash);
    done();
    both(OPCOMMS_KEY_P256); /* the default: mail for itself only */
    CHECK_EQ(opcomms_client_open(a.peer, b.hash, b.address, &channel, &err), OPCOMMS_OK);
    strcpy(box.hash, a.hash);
    CHECK_EQ(opcomms_client_send(channel, 0, &box, "x", 1, 0, 0, &err), OPCOMMS_E_ROUTE);
    done();
}

TEST(a_mailbox_that_was_emptied_makes_place_for_another) {
    opcomms_mail mail;
    opcomms_error err;
    char text[16];
    int i;
    server(NULL);
    for (i = 0; i < 20; i++) {
        box.id = (int16_t)i;
        CHECK_EQ(opcomms_client_send(channel, 0, &box, "x", 1, 0, 0, &err), OPCOMMS_OK);
        CHECK_EQ(opcomms_client_recv(channel, (uint8_t)i, &mail, text, 16, 0, &err), OPCOMMS_OK);
    }
    done();
}

static void two_a_minute(opcomms_config *cfg) {
    cfg->rate_capacity = 2;
    cfg->rate_per_second = 1;
}

static void newer_and_two_a_minute(opcomms_config *cfg) {
    two_a_minute(cfg);
    cfg->protocol = OPCOMMS_PROTOCOL_NEWER;
}

TEST(requests_above_the_rate_are_refused_and_told) {
    opcomms_stats stats;
    opcomms_error err;
    opcomms_err rc = OPCOMMS_OK;
    int round, i;
    for (round = 0; round < 2; round++) {
        server(round == 0 ? two_a_minute : newer_and_two_a_minute);
        for (i = 0; i < 50 && rc != OPCOMMS_E_REMOTE; i++) {
            rc = opcomms_client_send(channel, 0, &box, "x", 1, 0, 0, &err);
            CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_REMOTE);
        }
        CHECK(i > 2);
        CHECK_EQ(rc, OPCOMMS_E_REMOTE);
        CHECK(strstr(err.text, "rate limit") != NULL);
        rc = opcomms_client_ping(channel, 0, &err); /* only the newer form can refuse it */
        CHECK(round == 0 ? rc == OPCOMMS_OK : rc == OPCOMMS_OK || rc == OPCOMMS_E_REMOTE);
        stats.size = sizeof stats;
        CHECK_EQ(opcomms_get_stats(b.peer, &stats), OPCOMMS_OK);
        CHECK(stats.rate_limited >= 1);
        rc = OPCOMMS_OK;
        done();
    }
}

static void newer_and_small(opcomms_config *cfg) {
    cfg->protocol = OPCOMMS_PROTOCOL_NEWER;
    cfg->frame_bytes_max = 16384;
}

TEST(the_newer_protocol_tells_what_is_too_large) {
    opcomms_stats stats;
    opcomms_error err;
    char text[13000];
    server(newer_and_small);
    memset(text, 'x', sizeof text);
    CHECK_EQ(opcomms_client_ping(channel, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_client_send(channel, 0, &box, text, 12288, OPCOMMS_MESSAGE_TEXT, 0, &err),
             OPCOMMS_OK);
    CHECK_EQ(opcomms_client_send(channel, 0, &box, text, 12289, OPCOMMS_MESSAGE_TEXT, 0, &err),
             OPCOMMS_E_REMOTE);
    CHECK(strstr(err.text, "12 KB") != NULL);
    stats.size = sizeof stats;
    CHECK_EQ(opcomms_get_stats(b.peer, &stats), OPCOMMS_OK);
    CHECK_EQ(stats.too_large, 1);
    done();
}

TEST(components_of_the_process_use_the_mailboxes_without_a_network) {
    opcomms_message *m = NULL;
    opcomms_mail mail;
    opcomms_error err;
    uint8_t *data = (uint8_t *)malloc(500000), *back = (uint8_t *)malloc(500000);
    size_t i, got = 0;
    char text[16];
    server(NULL);
    for (i = 0; i < 500000; i++) data[i] = (uint8_t)(i * 13 + i / 300);
    strcpy(box.hash, b.hash);
    box.id = 5;
    CHECK_EQ(opcomms_local_get(b.peer, 5, &mail, text, 16, &err), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_local_send(b.peer, 2, &box, "note", 4, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_local_send(b.peer, 2, &box, data, 500000, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_local_get(b.peer, 5, &mail, text, 2, &err), OPCOMMS_E_BUFFER);
    CHECK_EQ(opcomms_local_get(b.peer, 5, &mail, text, 16, &err), OPCOMMS_OK);
    CHECK(mail.bytes == 4 && memcmp(text, "note", 4) == 0 && mail.from.id == 2);
    CHECK_STR(mail.from.hash, b.hash);
    CHECK_EQ(opcomms_receive_id(b.peer, 5, 0, &m, &err), OPCOMMS_OK); /* the other way to it */
    CHECK_EQ(opcomms_message_read(m, 0, text, 16, &got), OPCOMMS_OK);
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_local_ack(b.peer, 5, mail.uid, &err), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(opcomms_local_recv(b.peer, 5, &mail, back, 500000, &err), OPCOMMS_OK);
    CHECK(mail.bytes == 500000 && memcmp(back, data, 500000) == 0);
    strcpy(box.hash, a.hash); /* for a third party, who fetches it over the network */
    CHECK_EQ(opcomms_local_send(b.peer, 2, &box, "for a", 5, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_client_recv(channel, 5, &mail, text, 16, 0, &err), OPCOMMS_OK);
    CHECK(mail.bytes == 5 && memcmp(text, "for a", 5) == 0);
    CHECK_STR(mail.from.hash, b.hash);
    CHECK_EQ(opcomms_routing_table_allow_all(b.routes, 0), OPCOMMS_OK);
    CHECK_EQ(opcomms_local_send(b.peer, 2, &box, "no", 2, 0, &err), OPCOMMS_E_ROUTE);
    CHECK_EQ(opcomms_stop(b.peer), OPCOMMS_OK);
    CHECK_EQ(opcomms_local_send(b.peer, 2, &box, "no", 2, 0, &err), OPCOMMS_E_CLOSED);
    CHECK_EQ(opcomms_local_get(b.peer, 5, &mail, text, 16, &err), OPCOMMS_E_CLOSED);
    free(data);
    free(back);
    done();
}

int main(void) {
    if (!party_begin()) return 1;
    RUN(every_call_has_both_outcomes);
    RUN(text_and_bytes_come_back_as_what_they_were);
    RUN(a_channel_serves_several_threads);
    RUN(a_channel_opens_again_after_the_server_restarted);
    RUN(mail_for_third_parties_is_opted_into_and_capped);
    RUN(a_mailbox_that_was_emptied_makes_place_for_another);
    RUN(requests_above_the_rate_are_refused_and_told);
    RUN(the_newer_protocol_tells_what_is_too_large);
    RUN(components_of_the_process_use_the_mailboxes_without_a_network);
    return party_end();
}
