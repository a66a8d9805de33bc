/* Two peers through the public functions alone. */
#include "party.h"

#include <signal.h>
#include <sys/wait.h>

TEST(the_seed_program_works_in_one_thread) {
    opcomms_identifier from;
    opcomms_error err;
    char text[64];
    size_t len = 0;
    both(OPCOMMS_KEY_RSA_2048);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "hello", 5, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_check_receive(b.peer, &from, text, sizeof text, &len, &err), OPCOMMS_OK);
    CHECK(len == 5 && memcmp(text, "hello", 5) == 0);
    CHECK_STR(from.hash, a.hash);
    CHECK_EQ(from.id, 0);
    CHECK_EQ(opcomms_check_receive(b.peer, &from, text, sizeof text, &len, &err), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_ping(b.peer, a.hash, a.address, 0, &err), OPCOMMS_OK);
    end(&a);
    end(&b);
}

TEST(every_size_and_byte_arrives_as_it_was_sent) {
    static const size_t sizes[] = {0, 1, 100, 16383, 16384, 16385, 65536, 1000000, 2097000};
    uint8_t *data = (uint8_t *)malloc(4 << 20), *back = (uint8_t *)malloc(4 << 20);
    opcomms_error err;
    size_t i, k, len;
    both(OPCOMMS_KEY_P256);
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (k = 0; k < sizes[i]; k++) data[k] = (uint8_t)(k * 7 + k / 256);
        CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, data, sizes[i], 60000, &err), OPCOMMS_OK);
        len = 1;
        if (sizes[i] > 0) {
            CHECK_EQ(opcomms_check_receive(b.peer, NULL, back, sizes[i] - 1, &len, &err),
                     OPCOMMS_E_BUFFER);
            CHECK_EQ(len, sizes[i]);
        }
        CHECK_EQ(opcomms_check_receive(b.peer, NULL, back, sizes[i], &len, &err), OPCOMMS_OK);
        CHECK(len == sizes[i] && memcmp(data, back, len) == 0);
    }
    end(&a);
    end(&b);
    free(data);
    free(back);
}

/* 2 200 000 bytes of three digits each are no frame of tarpc, which natively does not matter. */
TEST(what_does_not_fit_is_refused_before_anything_is_sent) {
    uint8_t *data = (uint8_t *)malloc((8 << 20) + 1);
    opcomms_error err;
    opcomms_stats stats;
    size_t len = 0;
    both(OPCOMMS_KEY_P256);
    memset(data, 200, (8 << 20) + 1);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, data, 2200000, 60000, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, data, 8 << 20, &len, &err), OPCOMMS_OK);
    CHECK_EQ(len, 2200000);
    /* cfg.message_bytes_max, by default 8 MiB */
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, data, (8 << 20) + 1, 0, &err),
             OPCOMMS_E_LIMIT);
    CHECK_EQ(opcomms_stop(a.peer), OPCOMMS_OK);
    opcomms_free(a.peer);
    a.flags = OPCOMMS_TARPC_ONLY;
    CHECK_EQ(start(&a, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, data, 2200000, 0, &err), OPCOMMS_E_LIMIT);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, data, 1, 0, &err), OPCOMMS_OK);
    stats.size = sizeof stats;
    CHECK_EQ(opcomms_get_stats(b.peer, &stats), OPCOMMS_OK);
    CHECK_EQ(stats.messages_in, 2);
    end(&a);
    end(&b);
    free(data);
}

TEST(nobody_is_served_who_is_not_meant) {
    opcomms_error err;
    party c;
    size_t len = 0;
    char text[8];
    both(OPCOMMS_KEY_P256);
    make(&c, "c", OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_allow_list_add(a.allow, c.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(c.allow, b.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(start(&c, &err), OPCOMMS_OK);
    /* b listens there, not c */
    CHECK_EQ(opcomms_send(a.peer, c.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_IDENTITY);
    /* b does not list c, and says so by an alert */
    CHECK_EQ(opcomms_send(c.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(err.tls_code, 256 + 46);
    /* c does not list a */
    CHECK_EQ(opcomms_send(c.peer, a.hash, a.address, "x", 1, 0, &err), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_routing_table_allow_all(b.routes, 0), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "x", 1, 0, &err), OPCOMMS_E_ROUTE);
    end(&c);
    end(&a);
    end(&b);
}

TEST(removal_closes_the_live_connection) {
    opcomms_error err;
    opcomms_err rc;
    size_t len = 0;
    char text[8];
    both(OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "1", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_remove(b.allow, a.hash), OPCOMMS_OK);
    /* The second message may still have gone into the old connection; it is not stored. */
    rc = opcomms_send(a.peer, b.hash, b.address, "2", 1, 0, &err);
    CHECK(rc == OPCOMMS_E_UNKNOWN_OUTCOME || rc == OPCOMMS_E_TLS);
    /* No entry is left that admits the address: closed before a signature is spent. */
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "3", 1, 0, &err), OPCOMMS_E_TLS);
    CHECK_EQ(opcomms_allow_list_add(b.allow, b.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "4", 1, 0, &err), OPCOMMS_E_NOT_ALLOWED);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_E_EMPTY);
    end(&a);
    end(&b);
}

TEST(a_restarted_receiver_keeps_its_mail_and_is_reached_again) {
    opcomms_message *m = NULL, *n = NULL;
    opcomms_identifier from;
    opcomms_error err;
    char text[8];
    size_t got = 0;
    both(OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "1", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "2", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_receive(b.peer, 0, &m, &err), OPCOMMS_OK);
    opcomms_release(m);
    CHECK_EQ(opcomms_stop(b.peer), OPCOMMS_OK);
    CHECK_EQ(opcomms_stop(b.peer), OPCOMMS_OK);
    opcomms_free(b.peer);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "3", 1, 0, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_receive(b.peer, 0, &m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_receive(b.peer, 0, &n, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_read(m, 0, text, 8, &got), OPCOMMS_OK);
    CHECK(got == 1 && text[0] == '1');
    opcomms_message_from(m, &from);
    CHECK_STR(from.hash, a.hash);
    CHECK_EQ(opcomms_ack(n, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_receive(b.peer, 0, &m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_message_read(m, 0, text, 8, &got), OPCOMMS_OK);
    CHECK(got == 1 && text[0] == '3');
    CHECK_EQ(opcomms_ack(m, &err), OPCOMMS_OK);
    CHECK_EQ(opcomms_wait(b.peer, 1), OPCOMMS_E_EMPTY);
    CHECK_EQ(opcomms_stop(a.peer), OPCOMMS_OK);
    CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, "4", 1, 0, &err), OPCOMMS_E_CLOSED);
    end(&a);
    end(&b);
}

TEST(new_says_why_it_fails) {
    opcomms_error err;
    party c;
    both(OPCOMMS_KEY_P256);
    make(&c, "c", OPCOMMS_KEY_P256);
    strcpy(c.address, b.address);
    CHECK_EQ(start(&c, &err), OPCOMMS_E_IN_USE);
    strcpy(c.address, "localhost:1");
    CHECK_EQ(start(&c, &err), OPCOMMS_E_ADDRESS);
    strcpy(c.address, "[::1]:0");
    CHECK_EQ(start(&c, &err), OPCOMMS_OK);
    CHECK(strncmp(c.address, "[::1]:", 6) == 0);
    end(&c);
    end(&a);
    end(&b);
}

static void *sender(void *arg) {
    size_t i, failed = 0;
    opcomms_error err;
    (void)arg;
    for (i = 0; i < 50; i++) {
        if (opcomms_send(a.peer, b.hash, b.address, "t", 1, 0, &err) != OPCOMMS_OK) failed++;
    }
    return (void *)failed;
}

TEST(several_threads_send_over_one_peer) {
    pthread_t t[4];
    opcomms_error err;
    opcomms_stats stats;
    size_t len = 0, i, count = 0;
    char text[8];
    both(OPCOMMS_KEY_P256);
    for (i = 0; i < 4; i++) CHECK_EQ(pthread_create(&t[i], NULL, sender, NULL), 0);
    for (i = 0; i < 4; i++) {
        void *failed = NULL;
        CHECK_EQ(pthread_join(t[i], &failed), 0);
        CHECK(failed == NULL);
    }
    while (opcomms_check_receive(b.peer, NULL, text, 8, &len, &err) == OPCOMMS_OK) count++;
    CHECK_EQ(count, 200);
    stats.size = sizeof stats;
    CHECK_EQ(opcomms_get_stats(b.peer, &stats), OPCOMMS_OK);
    CHECK_EQ(stats.messages_in, 200);
    end(&a);
    end(&b);
}

TEST(what_was_acknowledged_survives_kill_9) {
    opcomms_error err;
    int to_child[2], to_us[2], i;
    pid_t child;
    char text[8];
    size_t len = 0;
    make(&a, "a", OPCOMMS_KEY_P256);
    make(&b, "b", OPCOMMS_KEY_P256);
    CHECK_EQ(opcomms_allow_list_add(a.allow, b.hash, NULL), OPCOMMS_OK);
    CHECK_EQ(opcomms_allow_list_add(b.allow, a.hash, NULL), OPCOMMS_OK);
    CHECK(pipe(to_child) == 0 && pipe(to_us) == 0);
    child = fork();
    if (child == 0) {
        char c;
        if (start(&b, &err) != OPCOMMS_OK) _exit(1);
        if (write(to_us[1], b.address, sizeof b.address) < 0) _exit(1);
        (void)!read(to_child[0], &c, 1);
        _exit(0);
    }
    CHECK_EQ(read(to_us[0], b.address, sizeof b.address), (long long)sizeof b.address);
    CHECK_EQ(start(&a, &err), OPCOMMS_OK);
    for (i = 0; i < 20; i++) {
        char c = (char)i;
        CHECK_EQ(opcomms_send(a.peer, b.hash, b.address, &c, 1, 0, &err), OPCOMMS_OK);
    }
    kill(child, SIGKILL);
    CHECK_EQ(waitpid(child, NULL, 0), child);
    CHECK_EQ(start(&b, &err), OPCOMMS_OK);
    for (i = 0; i < 20; i++) {
        CHECK_EQ(opcomms_check_receive(b.peer, NULL, text, 8, &len, &err), OPCOMMS_OK);
        CHECK_EQ(text[0], i);
    }
    end(&a);
    end(&b);
    for (i = 0; i < 2; i++) {
        close(to_child[i]);
        close(to_us[i]);
    }
}

int main(void) {
    if (!party_begin()) return 1;
    RUN(the_seed_program_works_in_one_thread);
    RUN(every_size_and_byte_arrives_as_it_was_sent);
    RUN(what_does_not_fit_is_refused_before_anything_is_sent);
    RUN(nobody_is_served_who_is_not_meant);
    RUN(removal_closes_the_live_connection);
    RUN(a_restarted_receiver_keeps_its_mail_and_is_reached_again);
    RUN(new_says_why_it_fails);
    RUN(several_threads_send_over_one_peer);
    RUN(what_was_acknowledged_survives_kill_9);
    return party_end();
}
