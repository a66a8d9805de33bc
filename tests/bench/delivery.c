/* Peers of this library, one process a side. Prints lines "name.size.what value".
   delivery flow KEEPS SIZE SECONDS WINDOW DIR   enqueue to receive_batch and ack_batch. KEEPS:
                                   memory; receiver: its log is synced before it acknowledges;
                                   both: and the sender commits batches to a log of its own
   delivery trip KIND SIZE DIR     blocking sends beside the raw TCP round trip, in turn. KIND:
                                   pump: without threads; thread; durable: synced by the receiver;
                                   durable_pump: without threads
   delivery enqueue SIZE DIR       enqueue into a log that is not synced, nobody to deliver to
   delivery make DIR MB            a log of so many MB, unread
   delivery open DIR               opens it, beside reading and checksumming it */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#include "raw.h"

#define BATCH 1024
#define QUEUED 100000u
#define OUT_QUEUED 32768u /* as libzmq's two queues */
#define OUT_BYTES (64u << 20)

static char dir[512];
static size_t size;
static opcomms_allow_list *allow;
static opcomms_routing_table *routes;
static opcomms_error err;

static void check(opcomms_err rc, const char *what) {
    errno = err.os_code;
    if (rc != OPCOMMS_OK) raw_die("%s: %s: %s", what, opcomms_err_text(rc), err.text);
}

typedef struct kind {
    const char *log; /* its name, or NULL: in memory */
    opcomms_durability durability;
    uint32_t flags;
    uint32_t window; /* 0: the default */
    uint32_t queued; /* 0: the default */
} kind;

static opcomms_peer *peer_open(const kind *k, const char *pem, size_t len) {
    static char key[4096];
    static size_t key_len;
    char path[600];
    opcomms_config cfg;
    opcomms_peer *peer = NULL;
    opcomms_config_init(&cfg);
    if (pem == NULL) {
        check(opcomms_generate_key_pem(OPCOMMS_KEY_P256, key, sizeof key, &key_len, &err), "key");
    }
    cfg.key_pem = pem != NULL ? pem : key;
    cfg.key_pem_bytes = pem != NULL ? len : key_len;
    cfg.address = "127.0.0.1:0";
    cfg.allow = allow;
    cfg.routes = routes;
    cfg.flags = k->flags;
    cfg.durability = k->durability;
    cfg.rate_capacity = OPCOMMS_UNLIMITED;
    cfg.messages_max = cfg.queue_depth_max = QUEUED;
    cfg.memory_bytes_max = 256u << 20;
    cfg.log_bytes_max = 4ull << 30;
    if (k->window > 0) {
        cfg.window_messages = k->window;
        cfg.window_bytes = k->window * (uint64_t)size;
        if (cfg.window_bytes < 8u << 20) cfg.window_bytes = 8u << 20; /* its default */
    }
    if (k->queued > 0) {
        cfg.queued_max = k->queued;
        cfg.queued_bytes_max = OUT_BYTES;
    }
    if (k->log != NULL) {
        snprintf(path, sizeof path, "%s/%s", dir, k->log);
        if (pem == NULL) (void)unlink(path); /* of another key */
        cfg.log_path = path;
        if (!raw_lasting(dir)) raw_die("%s is a memory file system", dir);
    } else {
        cfg.flags |= OPCOMMS_MEMORY_STORE;
    }
    if (pem != NULL) cfg.messages_max = cfg.queue_depth_max = 4000000;
    check(opcomms_new(&cfg, &peer, &err), "opcomms_new");
    return peer;
}

static opcomms_peer *receiver_open(const kind *k) {
    opcomms_peer *peer = peer_open(k, NULL, 0);
    (void)opcomms_get_pubk_hash(peer, raw_page->hash);
    (void)opcomms_get_address(peer, raw_page->address, sizeof raw_page->address);
    raw_reach(1);
    return peer;
}

static opcomms_peer *sender_open(const kind *k) {
    raw_await(&raw_page->stage, 1);
    return peer_open(k, NULL, 0);
}

/* ---- one way ---- */

#ifdef DELIVERY
static opcomms_peer *sender;
static opcomms_identifier to;

static void put(uint8_t *p, void *user) {
    opcomms_err rc;
    (void)user;
    for (;;) {
        rc = opcomms_enqueue(sender, &to, raw_page->address, NULL, 0, p, size, NULL, NULL, &err);
        if (rc != OPCOMMS_E_FULL) break;
        raw_alive();
        (void)poll(NULL, 0, 1);
    }
    check(rc, "opcomms_enqueue");
}

/* With a log of its own the sender hands over many messages at a time, for one sync. */
#define COMMIT_BYTES (256u << 10)

static struct {
    opcomms_outgoing out[BATCH];
    uint8_t *data;
    size_t n;
    size_t most; /* in one operation */
} commit;

static void commit_all(void) {
    size_t at = 0;
    while (at < commit.n) {
        size_t n = commit.n - at < commit.most ? commit.n - at : commit.most;
        opcomms_err rc = opcomms_commit(sender, NULL, 0, commit.out + at, n, NULL, 0, &err);
        if (rc == OPCOMMS_E_FULL) {
            raw_alive();
            (void)poll(NULL, 0, 1);
        } else if (rc == OPCOMMS_E_LIMIT && commit.most > 1) {
            commit.most /= 2;
        } else {
            check(rc, "opcomms_commit");
            at += n;
        }
    }
    commit.n = 0;
}

static void put_committed(uint8_t *p, void *user) {
    opcomms_outgoing *o = &commit.out[commit.n];
    (void)user;
    if (commit.data == NULL) {
        commit.most = COMMIT_BYTES / size < BATCH ? COMMIT_BYTES / size : BATCH;
        commit.data = (uint8_t *)calloc(commit.most, size);
    }
    memset(o, 0, sizeof *o);
    o->to = to;
    o->address = raw_page->address;
    o->data = memcpy(commit.data + commit.n * size, p, size);
    o->len = size;
    if (++commit.n >= commit.most || p[16] == RAW_END) commit_all();
}

/* Waits until the receiver has acknowledged all of it as it does. */
static void settle(void) {
    double limit = raw_now() + 30e6;
    uint64_t left;
    while ((left = opcomms_queued_count(sender, NULL)) > 0) {
        raw_alive();
        (void)poll(NULL, 0, 1);
        if (raw_now() < limit) continue;
        errno = 0;
        raw_die("%llu of %llu are not acknowledged", (unsigned long long)left,
                (unsigned long long)raw_sent);
    }
}

/* All of it: one call may give a part. */
static void take(opcomms_message *m, uint8_t *p) {
    size_t at = 0, got = 1;
    while (got > 0 && at < size) {
        check(opcomms_message_read(m, at, p + at, size - at, &got), "opcomms_message_read");
        at += got;
    }
    if (at != size || opcomms_message_size(m) != size) {
        raw_die("a message of %u bytes", (unsigned)opcomms_message_size(m));
    }
}

static void flow_receive(const kind *k) {
    static opcomms_message *batch[BATCH];
    opcomms_peer *peer = receiver_open(k);
    uint8_t *p = (uint8_t *)calloc(1, size);
    int over = 0;
    while (!over) {
        size_t n = 0, i;
        opcomms_err rc = opcomms_receive_batch(peer, 0, 10000, batch, BATCH, &n, &err);
        check(rc, "opcomms_receive_batch");
        for (i = 0; i < n; i++) {
            take(batch[i], p);
            over = raw_hear(p, 0);
        }
        check(opcomms_ack_batch(batch, n, &err), "opcomms_ack_batch");
    }
    raw_page->result.kb = raw_kb();
    raw_reach(2);
    for (;;) pause(); /* it still acknowledges */
}

static void flow(const char *keeps, double seconds, uint32_t window) {
    uint8_t *p = (uint8_t *)calloc(1, size);
    kind in = {NULL, OPCOMMS_DURABLE_ALWAYS, 0, 0, 0}, out = in;
    char name[64];
    in.window = window;
    if (strcmp(keeps, "memory") != 0) in.log = "in.log";
    if (strcmp(keeps, "both") == 0) out.log = "out.log";
    out.queued = OUT_QUEUED;
    if (raw_start() == 0) flow_receive(&in);
    out.flags = OPCOMMS_NO_LISTEN;
    sender = sender_open(&out);
    strcpy(to.hash, raw_page->hash);
    to.id = 0;
    raw_flow(seconds, out.log != NULL ? put_committed : put, p, NULL);
    settle();
    snprintf(name, sizeof name, "our.%s.%u", keeps, (unsigned)window);
    raw_report(name, size);
    opcomms_free(sender);
}

/* ---- enqueue ---- */

/* Nobody listens at the address, and without a thread nobody tries. */
static void enqueue(void) {
    static const kind k = {"queue.log", OPCOMMS_DURABLE_NEVER,
                           OPCOMMS_NO_BACKGROUND | OPCOMMS_NO_LISTEN, 0, 0};
    static double v[QUEUED / RAW_STRIDE];
    uint8_t *p = (uint8_t *)calloc(1, size);
    double timed = 0, rest = 0, at = 0, clock;
    size_t i, n = 0, counted = 0;
    sender = peer_open(&k, NULL, 0);
    (void)opcomms_get_pubk_hash(sender, to.hash);
    to.hash[0] = to.hash[0] == '0' ? '1' : '0'; /* of nobody */
    clock = raw_now();
    for (i = 0; i < 1000; i++) (void)raw_now();
    clock = (raw_now() - clock) / 1001;
    for (i = 0; i < QUEUED; i++) { /* one is timed by itself, fifteen together */
        check(opcomms_enqueue(sender, &to, "127.0.0.1:1", NULL, 0, p, size, NULL, NULL, &err),
              "opcomms_enqueue");
        if (i < 1008 || i % RAW_STRIDE > 1) continue;
        timed = raw_now();
        if (i % RAW_STRIDE == 1) {
            v[n++] = timed - at - clock;
        } else if (at > 0) {
            rest += timed - at - clock;
            counted += RAW_STRIDE - 1;
        }
        at = timed;
    }
    raw_tell("our.enqueue", size, "ns", rest / (double)counted * 1e3);
    raw_tell("our.enqueue", size, "p99", raw_share(v, n, 0.99) * 1e3);
    raw_tell("our.enqueue", size, "p50", raw_share(v, n, 0.5) * 1e3);
    opcomms_free(sender);
}
#endif

/* ---- there and back ---- */

static int clear(opcomms_peer *peer) {
    static uint8_t buf[65536];
    size_t len;
    int n = 0;
    while (opcomms_check_receive(peer, NULL, buf, sizeof buf, &len, &err) == OPCOMMS_OK) n++;
    return n;
}

/* Takes what has come out of the mailbox when it is told to: who reads it is not measured. */
static void trip_receive(const kind *k) {
    opcomms_peer *peer = receiver_open(k);
    for (;;) {
        int order = __atomic_load_n(&raw_page->order, __ATOMIC_ACQUIRE);
        if (order > raw_page->done) {
            (void)clear(peer);
            raw_set(&raw_page->done, order);
        } else if (k->flags & OPCOMMS_NO_BACKGROUND) {
            check(opcomms_poll(peer, 20), "opcomms_poll");
        } else {
            raw_wait(&raw_page->order, order, 1000);
        }
    }
}

static double trip_ours(opcomms_peer *peer, const uint8_t *p) {
    double start = raw_now();
    check(opcomms_send(peer, raw_page->hash, raw_page->address, p, size, 0, &err), "opcomms_send");
    return raw_now() - start;
}

#define BLOCKS 5
#define TRIPS 200
#define SLOW 40

static void trip(const char *name) {
    static double ours[BLOCKS * TRIPS], raw[BLOCKS * TRIPS], disk[BLOCKS * TRIPS];
    int durable = strncmp(name, "durable", 7) == 0, block, i, each = TRIPS;
    kind in = {NULL, OPCOMMS_DURABLE_ALWAYS, 0, 0, 0}, out = in;
    uint8_t *p = (uint8_t *)calloc(1, size);
    size_t n = 0;
    char text[64];
    opcomms_peer *peer;
    int fd, file = -1;
    if (durable || size > 16384) each = SLOW;
    if (strstr(name, "pump") != NULL) in.flags = out.flags = OPCOMMS_NO_BACKGROUND;
    if (durable) in.log = "trip.log";
    out.flags |= OPCOMMS_NO_LISTEN;
    if (raw_start() == 0) trip_receive(&in);
    fd = raw_echo(size);
    if (durable) file = raw_file(dir);
    peer = sender_open(&out);
    for (i = 0; i < 50; i++) (void)trip_ours(peer, p);
    for (i = 0; i < 50; i++) (void)raw_trip(fd, size);
    for (block = 0; block < BLOCKS; block++) {
        raw_order();
        for (i = 0; i < each; i++) raw[n + (size_t)i] = raw_trip(fd, size);
        for (i = 0; i < each; i++) ours[n + (size_t)i] = trip_ours(peer, p);
        for (i = 0; durable && i < each; i++) {
            double start = raw_now();
            raw_append(file, p, size);
            disk[n + (size_t)i] = raw_now() - start;
        }
        n += (size_t)each;
    }
    snprintf(text, sizeof text, "our.trip.%s", name);
    raw_tell(text, size, "p99", raw_share(ours, n, 0.99));
    raw_tell(text, size, "p50", raw_share(ours, n, 0.5));
    raw_tell(text, size, "raw_p99", raw_share(raw, n, 0.99));
    raw_tell(text, size, "raw_p50", raw_share(raw, n, 0.5));
    if (durable) raw_tell(text, size, "disk_p50", raw_share(disk, n, 0.5));
    raw_tell(text, size, "kb_out", (double)raw_kb());
    opcomms_free(peer);
    close(fd);
}

/* ---- opening a log ---- */

static size_t read_file(const char *name, char *buf, size_t cap) {
    char path[600];
    size_t n = 0;
    FILE *f;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "r");
    if (f != NULL) n = fread(buf, 1, cap, f);
    if (f == NULL || n == 0) raw_die("%s", path);
    fclose(f);
    return n;
}

static const kind big = {"big.log", OPCOMMS_DURABLE_NEVER,
                         OPCOMMS_NO_BACKGROUND | OPCOMMS_NO_LISTEN, 0, 0};

static void make(unsigned mb) {
    static uint8_t data[1000];
    static char pem[4096];
    char path[600];
    opcomms_identifier own;
    opcomms_peer *peer;
    opcomms_stats stats;
    uint64_t n = 0;
    size_t len;
    snprintf(path, sizeof path, "%s/big.key", dir);
    (void)unlink(path);
    check(opcomms_generate_key_file(path, OPCOMMS_KEY_P256, &err), "key");
    snprintf(path, sizeof path, "%s/big.log", dir);
    (void)unlink(path);
    len = read_file("big.key", pem, sizeof pem);
    peer = peer_open(&big, pem, len);
    (void)opcomms_get_pubk_hash(peer, own.hash);
    own.id = 0;
    memset(&stats, 0, sizeof stats);
    stats.size = sizeof stats;
    do {
        check(opcomms_local_send(peer, 0, &own, data, sizeof data, 0, &err), "opcomms_local_send");
        if (n++ % 1024 == 0) (void)opcomms_get_stats(peer, &stats);
    } while (stats.log_bytes < (uint64_t)mb * 1000000u);
    check(opcomms_stop(peer), "opcomms_stop");
    opcomms_free(peer);
}

static void open_log(void) {
    static char buf[1 << 20], pem[4096];
    size_t len = read_file("big.key", pem, sizeof pem);
    double start, bytes = 0;
    opcomms_peer *peer;
    opcomms_stats stats;
    uint32_t crc = 0;
    ssize_t n;
    int fd;
    snprintf(buf, sizeof buf, "%s/%s", dir, big.log);
    start = raw_now();
    fd = open(buf, O_RDONLY);
    if (fd < 0) raw_die("%s", buf);
    while ((n = read(fd, buf, sizeof buf)) > 0) {
        crc = opc__crc32c(crc, buf, (size_t)n);
        bytes += (double)n;
    }
    close(fd);
    raw_tell("our.open", 0, "raw_ms", (raw_now() - start) / 1e3);
    raw_tell("our.open", 0, "crc", (double)crc); /* so that it is not left out */
    start = raw_now();
    peer = peer_open(&big, pem, len);
    raw_tell("our.open", 0, "ms", (raw_now() - start) / 1e3);
    memset(&stats, 0, sizeof stats);
    stats.size = sizeof stats;
    (void)opcomms_get_stats(peer, &stats);
    raw_tell("our.open", 0, "unread", (double)stats.unread);
    raw_tell("our.open", 0, "mb", bytes / 1e6);
    raw_tell("our.open", 0, "kb", (double)raw_kb());
    opcomms_free(peer);
}

static int run(int argc, char **argv) {
    const char *what = argv[1];
    if (strcmp(what, "trip") == 0 && argc == 5) {
        size = (size_t)strtoul(argv[3], NULL, 10);
        strcpy(dir, argv[4]);
        trip(argv[2]);
    } else if (strcmp(what, "make") == 0 && argc == 4) {
        strcpy(dir, argv[2]);
        make((unsigned)strtoul(argv[3], NULL, 10));
    } else if (strcmp(what, "open") == 0) {
        strcpy(dir, argv[2]);
        open_log();
#ifdef DELIVERY
    } else if (strcmp(what, "flow") == 0 && argc == 7) {
        size = (size_t)strtoul(argv[3], NULL, 10);
        strcpy(dir, argv[6]);
        flow(argv[2], strtod(argv[4], NULL), (uint32_t)strtoul(argv[5], NULL, 10));
    } else if (strcmp(what, "enqueue") == 0 && argc == 4) {
        size = (size_t)strtoul(argv[2], NULL, 10);
        strcpy(dir, argv[3]);
        enqueue();
#endif
    } else {
        return 2;
    }
    return 0;
}

int main(int argc, char **argv) {
    int rc;
    if (argc < 3 || strlen(argv[argc - 1]) >= sizeof dir) return 2;
    if (opcomms_allow_list_new(NULL, &allow) || opcomms_routing_table_new(NULL, &routes) ||
        opcomms_allow_list_allow_all(allow, 1) || opcomms_routing_table_allow_all(routes, 1)) {
        return 1;
    }
    rc = run(argc, argv);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    if (raw_child > 0) {
        kill(raw_child, SIGKILL);
        waitpid(raw_child, NULL, 0); /* its log is free for the next run */
    }
    return rc;
}
