/* libzmq with CURVE, one process a side. Prints lines "name.size.what value".
   zmq flow SIZE SECONDS                 PUSH to PULL
   zmq durable SIZE SECONDS WINDOW DIR   the receiver appends, syncs and says how many it has; the
                                         sender has at most WINDOW messages under way
   zmq trip SIZE COUNT                   a message there, 64 bytes back */
#define _GNU_SOURCE
#include "raw.h"

#include <zmq.h>

#define BATCH_BYTES (4u << 20)

static size_t size;
static uint64_t window;
static void *context, *sock;

static void check(int ok, const char *what) {
    if (!ok) raw_die("%s: %s", what, zmq_strerror(zmq_errno()));
}

static void set(int option, const void *p, size_t n) {
    check(zmq_setsockopt(sock, option, p, n) == 0, "zmq_setsockopt");
}

/* As many messages as we let ourselves queue, but not more than 64 MiB. */
static void open_socket(int type) {
    int limit = (int)((64u << 20) / size), zero = 0;
    if (limit > 16384) limit = 16384;
    if (window > 0) limit = 2 * (int)window; /* it is the window that limits */
    context = zmq_ctx_new();
    check(context != NULL, "zmq_ctx_new");
    sock = zmq_socket(context, type);
    check(sock != NULL, "zmq_socket");
    set(ZMQ_SNDHWM, &limit, sizeof limit);
    set(ZMQ_RCVHWM, &limit, sizeof limit);
    set(ZMQ_LINGER, &zero, sizeof zero);
}

static void receiver_open(int type) {
    char text[41], secret[41];
    int on = 1;
    size_t len = sizeof raw_page->address;
    check(zmq_curve_keypair(text, secret) == 0, "CURVE");
    open_socket(type);
    set(ZMQ_CURVE_SERVER, &on, sizeof on);
    set(ZMQ_CURVE_SECRETKEY, secret, 40);
    check(zmq_bind(sock, "tcp://127.0.0.1:*") == 0, "zmq_bind");
    check(zmq_getsockopt(sock, ZMQ_LAST_ENDPOINT, raw_page->address, &len) == 0, "endpoint");
    memcpy(raw_page->key, text, sizeof text);
    raw_reach(1);
}

static void sender_open(int type) {
    char text[41], secret[41];
    raw_await(&raw_page->stage, 1);
    check(zmq_curve_keypair(text, secret) == 0, "CURVE");
    open_socket(type);
    set(ZMQ_CURVE_PUBLICKEY, text, 40);
    set(ZMQ_CURVE_SECRETKEY, secret, 40);
    set(ZMQ_CURVE_SERVERKEY, raw_page->key, 40);
    check(zmq_connect(sock, raw_page->address) == 0, "zmq_connect");
}

static void close_all(void) {
    zmq_close(sock);
    zmq_ctx_term(context);
}

static void take(uint8_t *p) { check(zmq_recv(sock, p, size, 0) == (int)size, "zmq_recv"); }

/* ---- one way ---- */

static void put(uint8_t *p, void *user) {
    (void)user;
    check(zmq_send(sock, p, size, 0) == (int)size, "zmq_send");
}

static void flow(double seconds) {
    uint8_t *p = (uint8_t *)calloc(1, size);
    if (raw_start() == 0) {
        receiver_open(ZMQ_PULL);
        do take(p);
        while (!raw_hear(p, 0));
        raw_reach(2);
        pause();
    }
    sender_open(ZMQ_PUSH);
    raw_flow(seconds, put, p, NULL);
    raw_report("zmq.flow", size);
    close_all();
}

/* ---- durable ---- */

/* What has come is written in one piece and synced, then counted. */
static void durable_receive(int fd) {
    uint64_t count = 0, most = BATCH_BYTES / size, batch, i;
    uint8_t *buf;
    int over = 0;
    if (most > (window + 1) / 2) most = (window + 1) / 2;
    if (most == 0) most = 1;
    buf = (uint8_t *)calloc((size_t)most, size);
    receiver_open(ZMQ_DEALER);
    while (!over) {
        double now;
        take(buf);
        for (batch = 1; batch < most; batch++) {
            int n = zmq_recv(sock, buf + batch * size, size, ZMQ_DONTWAIT);
            if (n < 0 && zmq_errno() == EAGAIN) break;
            check(n == (int)size, "zmq_recv");
        }
        raw_append(fd, buf, (size_t)batch * size);
        now = raw_now();
        for (i = 0; i < batch; i++) over = raw_hear(buf + i * size, now);
        count += batch;
        check(zmq_send(sock, &count, sizeof count, 0) == (int)sizeof count, "zmq_send");
    }
    raw_reach(2);
    pause();
}

static uint64_t acked;

static void acks(int flags) {
    uint64_t count;
    int n;
    while ((n = zmq_recv(sock, &count, sizeof count, flags)) == (int)sizeof count) {
        acked = count;
        flags = ZMQ_DONTWAIT;
    }
    check(n < 0 && zmq_errno() == EAGAIN, "zmq_recv");
}

static void put_within(uint8_t *p, void *user) {
    put(p, user);
    if (raw_sent - acked >= window) {
        acks(0);
    } else if (raw_sent % 64 == 0) {
        acks(ZMQ_DONTWAIT);
    }
}

static void durable(double seconds, const char *dir) {
    uint8_t *p = (uint8_t *)calloc(1, size);
    char name[64];
    if (raw_start() == 0) durable_receive(raw_file(dir));
    sender_open(ZMQ_DEALER);
    raw_flow(seconds, put_within, p, NULL);
    while (acked < raw_sent) acks(0);
    snprintf(name, sizeof name, "zmq.durable.%u", (unsigned)window);
    raw_report(name, size);
    close_all();
}

/* ---- there and back ---- */

static void trip(int count) {
    uint8_t *p = (uint8_t *)calloc(1, size);
    double *v = (double *)calloc((size_t)count, sizeof *v);
    int i;
    if (raw_start() == 0) {
        receiver_open(ZMQ_DEALER);
        for (;;) {
            take(p);
            check(zmq_send(sock, p, RAW_ANSWER, 0) == (int)RAW_ANSWER, "zmq_send");
        }
    }
    sender_open(ZMQ_DEALER);
    for (i = -100; i < count; i++) {
        double start = raw_now();
        put(p, NULL);
        check(zmq_recv(sock, p, size, 0) == (int)RAW_ANSWER, "zmq_recv");
        if (i >= 0) v[i] = raw_now() - start;
    }
    raw_tell("zmq.trip", size, "p99", raw_share(v, (size_t)count, 0.99));
    raw_tell("zmq.trip", size, "p50", raw_share(v, (size_t)count, 0.5));
    raw_tell("zmq.trip", size, "kb_out", (double)raw_kb());
    close_all();
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    size = (size_t)strtoul(argv[2], NULL, 10);
    if (size < 64 || size > 65536) return 2;
    if (strcmp(argv[1], "flow") == 0) {
        flow(strtod(argv[3], NULL));
    } else if (strcmp(argv[1], "durable") == 0 && argc == 6) {
        window = strtoul(argv[4], NULL, 10);
        durable(strtod(argv[3], NULL), argv[5]);
    } else if (strcmp(argv[1], "trip") == 0) {
        trip((int)strtol(argv[3], NULL, 10));
    } else {
        return 2;
    }
    kill(raw_child, SIGKILL);
    waitpid(raw_child, NULL, 0);
    return 0;
}
