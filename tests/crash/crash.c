/* Processes killed at random instants. The sender queues numbered messages of several streams, the
   receiver consumes each and answers it, the sender consumes the answers: all by opcomms_commit,
   each together with the numbers reached. So every process can tell, from its own log alone, a
   message that comes twice, out of order or never; and from marks beside the log, which it makes
   when a commit has returned, one that it lost itself. A number in the wrong place ends the run.
   CRASHES: kills in all. SEED: of the run; printed, and other each time when not given. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define STREAMS 4u
#define BIG 60000u /* bytes of some messages */
#define BATCH 16u

/* What each process remembers in its log. */
typedef struct memory {
    uint64_t made[STREAMS]; /* sender: last number queued; receiver: not used */
    uint64_t got[STREAMS];  /* last number consumed */
} memory;

/* Survives kills like a file would, and nobody but the process it belongs to writes it. */
typedef volatile struct marks {
    memory sure[2]; /* of sender and receiver: reached when a commit had returned */
    int opened[2];
    int wrong;
    char why[200];
} marks;

typedef struct side {
    char pem[4096];
    size_t len;
    char hash[65];
    char address[32];
    char log[96];
} side;

static char dir[64];
static side sides[2]; /* sender, receiver */
static marks *shared;
static uint64_t seed;
static uint64_t lot;
static volatile sig_atomic_t enough;

static uint32_t random32(void) { /* splitmix64 */
    uint64_t z = lot += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

static void wrong(const char *why, unsigned who, unsigned stream, uint64_t want, uint64_t got) {
    snprintf((char *)shared->why, sizeof shared->why, "%s: %s, stream %u: %llu, not %llu",
             who == 0 ? "sender" : "receiver", why, stream, (unsigned long long)got,
             (unsigned long long)want);
    shared->wrong = 1;
    _exit(3);
}

static void must(opcomms_err rc, unsigned who, const char *what) {
    if (rc != OPCOMMS_OK) wrong(what, who, 99, 0, (uint64_t)-(int64_t)rc);
}

/* ---- one process ---- */

static size_t message_size(unsigned stream, uint64_t number) {
    uint64_t h = (number * 4u + stream) * 0x9e3779b97f4a7c15u >> 40;
    return h % 16u == 0 ? 16u + h % BIG : 16u + h % 64u;
}

static void message_fill(uint8_t *out, unsigned stream, uint64_t number, size_t n) {
    size_t i;
    memcpy(out, &number, 8);
    for (i = 8; i < n; i++) out[i] = (uint8_t)(number * 31u + stream * 7u + i);
}

/* The number a message carries; its payload is checked byte by byte. */
static uint64_t message_number(unsigned who, unsigned stream, opcomms_message *m) {
    static uint8_t got[BIG + 16u], want[BIG + 16u];
    size_t n = opcomms_message_size(m), at = 0, some = 0;
    uint64_t number = 0;
    if (n < 16u || n > sizeof got) wrong("size", who, stream, 16, n);
    while (at < n) {
        must(opcomms_message_read(m, at, got + at, n - at, &some), who, "read");
        if (some == 0) wrong("short", who, stream, n, at);
        at += some;
    }
    memcpy(&number, got, 8);
    if (n != message_size(stream, number)) wrong("length", who, stream, number, n);
    message_fill(want, stream, number, n);
    if (memcmp(got, want, n) != 0) wrong("payload", who, stream, number, n);
    if (opcomms_message_flags(m) != 0) wrong("flags", who, stream, number, 1);
    return number;
}

static opcomms_peer *open_side(unsigned who) {
    opcomms_allow_list *allow = NULL;
    opcomms_routing_table *routes = NULL;
    opcomms_config cfg;
    opcomms_peer *peer = NULL;
    opcomms_error err;
    opcomms_err rc = OPCOMMS_E_IN_USE;
    int i;
    must(opcomms_allow_list_new(NULL, &allow), who, "list");
    must(opcomms_routing_table_new(NULL, &routes), who, "table");
    must(opcomms_allow_list_add(allow, sides[1 - who].hash, NULL), who, "list");
    must(opcomms_routing_table_allow_all(routes, 1), who, "table");
    opcomms_config_init(&cfg);
    cfg.address = sides[who].address;
    cfg.key_pem = sides[who].pem;
    cfg.key_pem_bytes = sides[who].len;
    cfg.allow = allow;
    cfg.routes = routes;
    cfg.log_path = sides[who].log;
    cfg.retry_min_ms = 1;
    cfg.retry_max_ms = 8;
    cfg.log_bytes_max = 64u << 20;
    for (i = 0; i < 500 && rc == OPCOMMS_E_IN_USE; i++) { /* the killed one may not be gone yet */
        rc = opcomms_new(&cfg, &peer, &err);
        if (rc == OPCOMMS_E_IN_USE) usleep(2000);
    }
    if (rc != OPCOMMS_OK) fprintf(stderr, "%s\n", err.text);
    must(rc, who, "open");
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    return peer;
}

/* What the log remembers is at least what a commit had promised. */
static void recall(opcomms_peer *peer, unsigned who, memory *m) {
    size_t len = 0;
    unsigned s;
    opcomms_err rc;
    memset(m, 0, sizeof *m);
    rc = opcomms_get_state(peer, m, sizeof *m, &len);
    if (rc != OPCOMMS_E_EMPTY) must(rc, who, "state");
    for (s = 0; s < STREAMS; s++) {
        if (m->made[s] < shared->sure[who].made[s]) {
            wrong("queued and forgotten", who, s, shared->sure[who].made[s], m->made[s]);
        }
        if (m->got[s] < shared->sure[who].got[s]) {
            wrong("consumed and forgotten", who, s, shared->sure[who].got[s], m->got[s]);
        }
    }
}

static void outgoing(unsigned who, unsigned stream, uint64_t number, opcomms_outgoing *o,
                     opcomms_enqueue_options *options) {
    size_t n = message_size(stream, number);
    uint8_t *data = (uint8_t *)malloc(n);
    memset(o, 0, sizeof *o);
    memset(options, 0, sizeof *options);
    options->size = sizeof *options;
    options->from_id = (uint8_t)stream;
    message_fill(data, stream, number, n);
    memcpy(o->to.hash, sides[1 - who].hash, 65);
    o->to.id = (int16_t)stream;
    o->address = sides[1 - who].address;
    o->data = data;
    o->len = n;
    o->options = options;
}

/* Consumes what is there of one stream; the receiver answers each in the same operation. */
static size_t consume(opcomms_peer *peer, unsigned who, unsigned stream, uint32_t wait_ms,
                      memory *m) {
    static opcomms_message *in[BATCH];
    static opcomms_outgoing out[BATCH];
    static opcomms_enqueue_options options[BATCH];
    opcomms_error err;
    memory next = *m;
    size_t count = 0, i, most = 1u + random32() % BATCH;
    opcomms_err rc = opcomms_receive_batch(peer, (uint8_t)stream, wait_ms, in, most, &count, &err);
    if (rc == OPCOMMS_E_EMPTY) return 0;
    must(rc, who, "receive");
    for (i = 0; i < count; i++) {
        uint64_t number = message_number(who, stream, in[i]);
        if (number != next.got[stream] + 1u) {
            wrong(number > next.got[stream] ? "missing or out of order" : "twice", who, stream,
                  next.got[stream] + 1u, number);
        }
        next.got[stream] = number;
        if (who == 1) outgoing(who, stream, number, &out[i], &options[i]);
    }
    rc = opcomms_commit(peer, in, count, out, who == 1 ? count : 0, &next, sizeof next, &err);
    for (i = 0; i < count && who == 1; i++) free((void *)(uintptr_t)out[i].data);
    if (rc == OPCOMMS_E_FULL) { /* nothing has happened: another time */
        for (i = 0; i < count; i++) opcomms_release(in[i]);
        return 0;
    }
    must(rc, who, "commit");
    *m = next;
    shared->sure[who] = next;
    return count;
}

static void produce(opcomms_peer *peer, memory *m) {
    opcomms_outgoing out[8];
    opcomms_enqueue_options options[8];
    opcomms_error err;
    memory next = *m;
    size_t count = 1u + random32() % 8u, i;
    opcomms_err rc;
    for (i = 0; i < count; i++) {
        unsigned s = random32() % STREAMS;
        outgoing(0, s, ++next.made[s], &out[i], &options[i]);
    }
    rc = opcomms_commit(peer, NULL, 0, out, count, &next, sizeof next, &err);
    for (i = 0; i < count; i++) free((void *)(uintptr_t)out[i].data);
    if (rc == OPCOMMS_E_FULL) return;
    must(rc, 0, "produce");
    *m = next;
    shared->sure[0] = next;
}

static void on_term(int sig) {
    (void)sig;
    enough = 1;
}

/* Until it is killed. Told by SIGTERM, the sender makes nothing new and ends when all is answered,
   the receiver ends at once. */
static void work(unsigned who) {
    opcomms_peer *peer = open_side(who);
    opcomms_event event;
    memory m;
    unsigned s;
    recall(peer, who, &m);
    shared->opened[who] = 1;
    for (;;) {
        size_t did = 0;
        if (who == 1 && enough) break;
        if (who == 0 && enough && memcmp(m.made, m.got, sizeof m.made) == 0 &&
            opcomms_queued_count(peer, NULL) == 0) {
            break;
        }
        if (who == 0 && !enough && opcomms_queued_count(peer, NULL) < 200u) {
            produce(peer, &m);
            did++;
        }
        for (s = 0; s < STREAMS; s++) did += consume(peer, who, s, 0, &m);
        while (opcomms_next_event(peer, 0, &event) == OPCOMMS_OK) {
            if (event.state == OPCOMMS_STATE_DEAD || event.state == OPCOMMS_STATE_ROLLBACK) {
                wrong("event", who, 99, event.state, (uint64_t)-(int64_t)event.code);
            }
        }
        if (did == 0) (void)consume(peer, who, random32() % STREAMS, 2, &m);
    }
    must(opcomms_stop(peer), who, "stop");
    opcomms_free(peer);
}

/* ---- all of them ---- */

static pid_t launch(unsigned who) {
    pid_t pid;
    sigset_t term;
    uint64_t luck = random32();
    shared->opened[who] = 0;
    fflush(NULL);
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, NULL); /* it waits until the handler stands */
    pid = fork();
    if (pid == 0) (void)signal(SIGTERM, on_term);
    sigprocmask(SIG_UNBLOCK, &term, NULL);
    if (pid != 0) return pid;
    lot = seed ^ luck << 20;
    alarm(120); /* whoever started it is gone */
    work(who);
    _exit(0);
}

/* A port that is free now: both have to find each other again after a restart. */
static void address(char out[32]) {
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    int s = socket(AF_INET, SOCK_STREAM, 0);
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_EQ(bind(s, (struct sockaddr *)&at, sizeof at), 0);
    CHECK_EQ(getsockname(s, (struct sockaddr *)&at, &len), 0);
    snprintf(out, 32, "127.0.0.1:%u", (unsigned)ntohs(at.sin_port));
    close(s);
}

static void begin(const char *name) {
    opcomms_error err;
    unsigned who;
    memset((void *)shared, 0, sizeof *shared);
    for (who = 0; who < 2; who++) {
        side *x = &sides[who];
        CHECK_EQ(opcomms_generate_key_pem(OPCOMMS_KEY_P256, x->pem, sizeof x->pem, &x->len, &err),
                 OPCOMMS_OK);
        CHECK_EQ(opcomms_pubk_hash_from_pem(x->pem, x->len, x->hash, &err), OPCOMMS_OK);
        address(x->address);
        snprintf(x->log, sizeof x->log, "%s/%s-%u.log", dir, name, who);
    }
}

/* The sender ends when all is answered; when the receiver ends before that, both have failed. */
static int end_well(const pid_t pid[2]) {
    int status = 0;
    pid_t first;
    (void)kill(pid[0], SIGTERM);
    first = waitpid(-1, &status, 0);
    if (first == pid[0]) (void)kill(pid[1], SIGTERM);
    if (first != pid[0] || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        printf("the %s ended first, status %d\n", first == pid[0] ? "sender" : "receiver", status);
        (void)kill(pid[1], SIGKILL);
        (void)kill(pid[0], SIGKILL);
        (void)waitpid(-1, NULL, 0);
        return 0;
    }
    CHECK_EQ(waitpid(pid[1], &status, 0), pid[1]);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* It is killed: anything else that it died of is a failure. */
static void put_down(pid_t pid) {
    int status = 0;
    (void)kill(pid, SIGKILL);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Every other kill waits until the process has opened its log, so that there is some progress. */
static void rest(unsigned whom) {
    int i;
    if (random32() % 2u == 0) {
        usleep(random32() % 60000u);
        return;
    }
    for (i = 0; i < 5000 && !((shared->opened[0] || !(whom & 1u)) &&
                              (shared->opened[1] || !(whom & 2u))); i++) {
        usleep(1000);
    }
    usleep(random32() % 40000u);
}

/* `whom`: bit 0 the sender, bit 1 the receiver. */
static void crashes(const char *name, unsigned whom, long count) {
    pid_t pid[2];
    uint64_t sum = 0;
    long i;
    unsigned who;
    begin(name);
    pid[0] = launch(0);
    pid[1] = launch(1);
    for (i = 0; i < count && !shared->wrong && !test_bad; i++) {
        unsigned now = whom == 3u ? 1u + random32() % 3u : whom;
        rest(now);
        for (who = 0; who < 2; who++) {
            if (now >> who & 1u) put_down(pid[who]);
        }
        for (who = 0; who < 2; who++) {
            if (now >> who & 1u) pid[who] = launch(who);
        }
    }
    if (test_bad || shared->wrong) {
        (void)kill(pid[0], SIGKILL);
        (void)kill(pid[1], SIGKILL);
        (void)waitpid(pid[0], NULL, 0);
        (void)waitpid(pid[1], NULL, 0);
    } else {
        CHECK(end_well(pid));
    }
    for (i = 0; i < (long)STREAMS; i++) {
        CHECK_EQ(shared->sure[0].made[i], shared->sure[0].got[i]);
        CHECK_EQ(shared->sure[0].made[i], shared->sure[1].got[i]);
        sum += shared->sure[1].got[i];
    }
    CHECK(sum > 0);
    CHECK_STR((const char *)shared->why, "");
    printf("%s: %ld kills, %llu messages and as many answers, seed %llu\n", name, count,
           (unsigned long long)sum, (unsigned long long)seed);
}

static long per_test;

TEST(a_killed_sender_loses_and_repeats_nothing) { crashes("sender", 1, per_test); }
TEST(a_killed_receiver_loses_and_repeats_nothing) { crashes("receiver", 2, per_test); }
TEST(two_killed_processes_lose_and_repeat_nothing) { crashes("both", 3, per_test); }

int main(void) {
    const char *text = getenv("CRASHES"), *given = getenv("SEED");
    char command[128];
    int failed;
    per_test = (text != NULL && text[0] != 0 ? atol(text) : 60) / 3;
    if (per_test < 1) per_test = 1;
    seed = given != NULL && given[0] != 0 ? strtoull(given, NULL, 10) : 0;
    if (seed == 0) {
        (void)opcomms_platform_default()->random(NULL, &seed, 4);
        seed = (seed & 0xffffffffu) + 1u;
    }
    lot = seed;
    strcpy(dir, "/tmp/opcomms-crash-XXXXXX");
    if (mkdtemp(dir) == NULL) return 1;
    shared = (marks *)mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == (marks *)MAP_FAILED) return 1;
    RUN(a_killed_sender_loses_and_repeats_nothing);
    RUN(a_killed_receiver_loses_and_repeats_nothing);
    RUN(two_killed_processes_lose_and_repeat_nothing);
    failed = test_end();
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return failed || system(command) != 0;
}
