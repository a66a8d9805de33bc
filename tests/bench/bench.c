/* Times, next to the raw limit of the same minute: `bench DIR` measures in DIR, which should not be
   a memory file system, and prints rows "name|ours|raw|ratio|target|reached" for run.sh. Rounds of
   ours and raw alternate, because other work comes and goes on the machine; of the ratios of all
   rounds the median counts. The receivers are processes of their own. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#include "bare.h"

#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#define ROUNDS 7
#define BLOCKS 5 /* a round is five blocks of each kind, in turn */
#define SIZE 64u
#define RAW_N 200
#define NEVER_N 200
#define SYNC_N 20
#define ALWAYS_N 30
#define THREADS 16
#define TRIES 6 /* handshakes a round */
#define SPACE (4u << 20) /* zeros written ahead for the raw appends */

static char dir[512];
static pid_t children[16];
static int children_count;

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "bench: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    while (children_count > 0) kill(children[--children_count], SIGKILL);
    exit(1);
}

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* Left alone, the scheduler puts two processes that talk to each other now on one processor, now on
   two: a round trip takes 7 us or 80, by chance, and differently for raw and ours. So a blocking
   sender is measured in both places: on one, where computing counts; on two, where waking does. */
static cpu_set_t anywhere, first, last;
static int processors;

static void places(void) {
    size_t i, low = CPU_SETSIZE, high = 0;
    if (sched_getaffinity(0, sizeof anywhere, &anywhere) != 0) {
        die("processors: %s", strerror(errno));
    }
    for (i = 0; i < CPU_SETSIZE; i++) {
        if (!CPU_ISSET(i, &anywhere)) continue;
        if (low == CPU_SETSIZE) low = i;
        high = i;
        processors++;
    }
    CPU_ZERO(&first);
    CPU_ZERO(&last);
    CPU_SET(low, &first);
    CPU_SET(high, &last);
}

/* All threads of a process. */
static void place(pid_t pid, const cpu_set_t *where) {
    char path[64];
    struct dirent *e;
    DIR *d;
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    d = opendir(path);
    if (d == NULL) die("%s: %s", path, strerror(errno));
    while ((e = readdir(d)) != NULL) {
        pid_t thread = (pid_t)strtol(e->d_name, NULL, 10);
        if (thread > 0 && sched_setaffinity(thread, sizeof *where, where) != 0) {
            die("processors: %s", strerror(errno));
        }
    }
    closedir(d);
}

/* A child, which ends with us. */
static pid_t branch(void) {
    pid_t child;
    fflush(stdout);
    child = fork();
    if (child < 0) die("fork: %s", strerror(errno));
    if (child == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) _exit(1);
    if (child > 0) children[children_count++] = child;
    return child;
}

/* ---- figures ---- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value below which a share of the samples lies; sorts them. */
static double share(double *v, int n, double part) {
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[(int)(part * (n - 1) + 0.5)];
}

/* The median of all rounds. */
static double middle(const double v[ROUNDS]) {
    double copy[ROUNDS];
    memcpy(copy, v, sizeof copy);
    return share(copy, ROUNDS, 0.5);
}

/* target 0: none. `ours` and `raw` are text with their units. */
static void row(const char *name, const char *ours, const char *raw, double ratio, double target) {
    char aim[32] = "", verdict[8] = "", times[32] = "";
    if (target > 0) {
        snprintf(aim, sizeof aim, "<= %.1f", target);
        strcpy(verdict, ratio <= target ? "yes" : "NO");
    }
    if (ratio > 0) snprintf(times, sizeof times, "%.2f", ratio);
    printf("%s|%s|%s|%s|%s|%s\n", name, ours, raw, times, aim, verdict);
    fflush(stdout);
}

static void row2(const char *name, const char *format, double a, double b, double raw_a,
                 double raw_b, double ratio, double target) {
    char ours[64], raw[64];
    snprintf(ours, sizeof ours, format, a, b);
    snprintf(raw, sizeof raw, format, raw_a, raw_b);
    row(name, ours, raw, ratio, target);
}

/* ---- the file system ---- */

/* Type of the file system that holds `path`, from the kernel's own list. */
static void fs_type(const char *path, char *out, size_t cap) {
    char line[1024], want[32];
    struct stat st;
    FILE *f = fopen("/proc/self/mountinfo", "r");
    snprintf(out, cap, "unknown");
    if (f == NULL || stat(path, &st) != 0) die("no such directory: %s", path);
    snprintf(want, sizeof want, " %u:%u ", major(st.st_dev), minor(st.st_dev));
    while (fgets(line, sizeof line, f) != NULL) {
        const char *dash = strstr(line, " - ");
        if (strstr(line, want) == NULL || dash == NULL) continue;
        snprintf(out, cap, "%.*s", (int)strcspn(dash + 3, " "), dash + 3);
    }
    fclose(f);
}

/* ---- raw limits ---- */

static void all_out(int fd, const void *p, size_t n) {
    const char *c = (const char *)p;
    while (n > 0) {
        ssize_t put = write(fd, c, n);
        if (put <= 0) die("write: %s", strerror(errno));
        c += put;
        n -= (size_t)put;
    }
}

static void all_in(int fd, void *p, size_t n) {
    char *c = (char *)p;
    while (n > 0) {
        ssize_t got = read(fd, c, n);
        if (got <= 0) die("the other process has ended");
        c += got;
        n -= (size_t)got;
    }
}

static int listen_any(struct sockaddr_in *at) {
    socklen_t len = sizeof *at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(at, 0, sizeof *at);
    at->sin_family = AF_INET;
    at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)at, sizeof *at) != 0 || listen(fd, 8) != 0 ||
        getsockname(fd, (struct sockaddr *)at, &len) != 0) {
        die("listen: %s", strerror(errno));
    }
    return fd;
}

static void no_delay(int fd) {
    int on = 1;
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) {
        die("socket: %s", strerror(errno));
    }
}

static int connect_to(const struct sockaddr_in *at) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)at, sizeof *at) != 0) {
        die("connect: %s", strerror(errno));
    }
    no_delay(fd);
    return fd;
}

/* A process that sends back what it gets; the result is connected to it. */
static int raw_start(void) {
    struct sockaddr_in at;
    int listener = listen_any(&at);
    pid_t child = branch();
    if (child == 0) {
        char buf[4096];
        int fd = accept(listener, NULL, NULL);
        no_delay(fd);
        for (;;) {
            ssize_t n = read(fd, buf, sizeof buf);
            if (n <= 0) _exit(0);
            all_out(fd, buf, (size_t)n);
        }
    }
    close(listener);
    return connect_to(&at);
}

static double raw_trip(int fd, size_t n) {
    char buf[1024];
    double start = now_us();
    memset(buf, 'r', n);
    all_out(fd, buf, n);
    all_in(fd, buf, n);
    return now_us() - start;
}

static int raw_file(void) {
    static char zeros[65536];
    char path[600];
    size_t i;
    int fd;
    snprintf(path, sizeof path, "%s/raw", dir);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0) die("%s: %s", path, strerror(errno));
    for (i = 0; i < SPACE / sizeof zeros; i++) all_out(fd, zeros, sizeof zeros);
    if (fsync(fd) != 0) die("fsync: %s", strerror(errno));
    return fd;
}


/* ---- ours ---- */

typedef struct key {
    char pem[4096];
    size_t len;
    char hash[65];
} key;

static opcomms_allow_list *allow;
static opcomms_routing_table *routes;

static void key_make(key *k, opcomms_key_type type) {
    opcomms_error err;
    if (opcomms_generate_key_pem(type, k->pem, sizeof k->pem, &k->len, &err) != OPCOMMS_OK ||
        opcomms_pubk_hash_from_pem(k->pem, k->len, k->hash, &err) != OPCOMMS_OK ||
        opcomms_allow_list_add(allow, k->hash, "127.0.0.1") != OPCOMMS_OK) {
        die("%s", err.text);
    }
}

static opcomms_peer *peer_make(const key *k, const char *name, opcomms_durability durability) {
    opcomms_peer *peer = NULL;
    opcomms_config cfg;
    opcomms_error err;
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name != NULL ? name : "");
    opcomms_config_init(&cfg);
    cfg.address = "127.0.0.1:0";
    cfg.key_pem = k->pem;
    cfg.key_pem_bytes = k->len;
    cfg.allow = allow;
    cfg.routes = routes;
    cfg.log_path = path;
    cfg.durability = durability;
    cfg.rate_capacity = 1000000000; /* the default would end the measuring */
    cfg.rate_per_second = 1000000000;
    if (name == NULL) cfg.flags |= OPCOMMS_MEMORY_STORE;
    if (opcomms_new(&cfg, &peer, &err) != OPCOMMS_OK) die("%s", err.text);
    return peer;
}

/* A receiver in a process of its own, steered by single bytes: d take everything out of the
   mailbox, r and e begin anew with that key in memory; each is answered by a byte. */
typedef struct receiver {
    int fd;
    pid_t pid;
    char hash[65];
    char address[64];
} receiver;

static const key *keys_rsa, *keys_ec;

static void receiver_run(int fd, const key *k, const char *name, opcomms_durability durability) {
    opcomms_peer *peer = name != NULL ? peer_make(k, name, durability) : NULL;
    char address[64] = "", buf[1024], c = 0;
    size_t len = 0;
    opcomms_error err;
    if (peer != NULL) (void)opcomms_get_address(peer, address, sizeof address);
    all_out(fd, address, sizeof address);
    while (read(fd, &c, 1) == 1) {
        if (c == 'd') {
            while (opcomms_check_receive(peer, NULL, buf, sizeof buf, &len, &err) == OPCOMMS_OK) {
            }
        } else {
            opcomms_free(peer);
            peer = peer_make(c == 'r' ? keys_rsa : keys_ec, NULL, OPCOMMS_DURABLE_NEVER);
            (void)opcomms_get_address(peer, address, sizeof address);
            all_out(fd, address, sizeof address);
        }
        all_out(fd, &c, 1);
    }
    opcomms_free(peer);
    _exit(0);
}

static void receiver_start(receiver *r, const key *k, const char *name,
                           opcomms_durability durability) {
    int fds[2];
    pid_t child;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) die("socketpair: %s", strerror(errno));
    child = branch();
    if (child == 0) {
        close(fds[0]);
        receiver_run(fds[1], k, name, durability);
    }
    close(fds[1]);
    r->pid = child;
    r->fd = fds[0];
    memcpy(r->hash, k->hash, sizeof r->hash);
    all_in(r->fd, r->address, sizeof r->address);
}

static void receiver_drain(receiver *r) {
    char c = 'd';
    all_out(r->fd, &c, 1);
    all_in(r->fd, &c, 1);
}

static double send_one(opcomms_peer *from, const receiver *to) {
    char data[SIZE];
    opcomms_error err;
    double start = now_us();
    memset(data, 'o', sizeof data);
    if (opcomms_send(from, to->hash, to->address, data, sizeof data, 0, &err) != OPCOMMS_OK) {
        die("send: %s", err.text);
    }
    return now_us() - start;
}

/* What the figures are taken with. */
typedef struct bench {
    opcomms_peer *from;
    receiver never;
    receiver always;
    int raw;     /* connected to the process that sends back */
    int file;    /* for raw appends */
    off_t at;
    int durable; /* the file system keeps what is synced */
} bench;

static double raw_append(bench *b, size_t n) {
    char buf[1024];
    double start = now_us();
    memset(buf, 'r', n);
    if (b->at + (off_t)n > (off_t)SPACE) b->at = 0;
    if (pwrite(b->file, buf, n, b->at) != (ssize_t)n || fdatasync(b->file) != 0) {
        die("append: %s", strerror(errno));
    }
    b->at += (off_t)n;
    return now_us() - start;
}

/* ---- a blocking sender: time and rate ---- */

typedef struct series {
    double v[BLOCKS * RAW_N];
    int n;
} series;

/* The answer is the rate. */
static double series_end(series *s, double *p50, double *p99) {
    double sum = 0, rate;
    int i;
    for (i = 0; i < s->n; i++) sum += s->v[i];
    rate = s->n / sum * 1e6;
    *p99 = share(s->v, s->n, 0.99);
    *p50 = share(s->v, s->n, 0.5);
    s->n = 0;
    return rate;
}

/* Of one place, all rounds. */
typedef struct sending {
    double trip50[ROUNDS], trip99[ROUNDS], ours50[ROUNDS], ours99[ROUNDS], ratio[ROUNDS];
    double sync50[ROUNDS], sum50[ROUNDS], sum99[ROUNDS], kept50[ROUNDS], kept99[ROUNDS];
    double kept_ratio[ROUNDS];
    double trip_rate[ROUNDS], ours_rate[ROUNDS], rate_ratio[ROUNDS];
    double sum_rate[ROUNDS], kept_rate[ROUNDS], kept_rate_ratio[ROUNDS];
} sending;

static void send_round(bench *b, sending *s, int round) {
    static series trip, ours, sync, kept;
    int block, i;
    for (block = 0; block < BLOCKS; block++) {
        for (i = 0; i < RAW_N; i++) trip.v[trip.n++] = raw_trip(b->raw, SIZE);
        for (i = 0; i < NEVER_N; i++) ours.v[ours.n++] = send_one(b->from, &b->never);
        for (i = 0; b->durable && i < SYNC_N; i++) sync.v[sync.n++] = raw_append(b, SIZE);
        for (i = 0; b->durable && i < ALWAYS_N; i++) {
            kept.v[kept.n++] = send_one(b->from, &b->always);
        }
    }
    receiver_drain(&b->never);
    receiver_drain(&b->always);
    s->trip_rate[round] = series_end(&trip, &s->trip50[round], &s->trip99[round]);
    s->ours_rate[round] = series_end(&ours, &s->ours50[round], &s->ours99[round]);
    s->ratio[round] = s->ours50[round] / s->trip50[round];
    s->rate_ratio[round] = s->ours_rate[round] / s->trip_rate[round];
    if (!b->durable) return;
    s->sum_rate[round] = series_end(&sync, &s->sync50[round], &s->sum99[round]);
    s->sum_rate[round] = 1 / (1 / s->trip_rate[round] + 1 / s->sum_rate[round]);
    s->sum50[round] = s->trip50[round] + s->sync50[round];
    s->sum99[round] += s->trip99[round];
    s->kept_rate[round] = series_end(&kept, &s->kept50[round], &s->kept99[round]);
    s->kept_ratio[round] = s->kept50[round] / s->sum50[round];
    s->kept_rate_ratio[round] = s->kept_rate[round] / s->sum_rate[round];
}

static void measure_send(bench *b) {
    static sending at[2];
    static const char *const where[2] = {"one processor", "two"};
    char text[96], raw[64];
    int round, k, i, n = processors > 1 ? 2 : 1;
    for (i = 0; i < 100; i++) {
        (void)raw_trip(b->raw, SIZE);
        (void)send_one(b->from, &b->never);
    }
    (void)send_one(b->from, &b->always);
    place(getpid(), &first);
    for (round = 0; round < ROUNDS; round++) {
        for (k = 0; k < n; k++) {
            for (i = 0; i < children_count; i++) place(children[i], k == 0 ? &first : &last);
            send_round(b, &at[k], round);
        }
    }
    place(getpid(), &anywhere);
    for (i = 0; i < children_count; i++) place(children[i], &anywhere);
    for (k = 0; k < n; k++) {
        const sending *s = &at[k];
        snprintf(text, sizeof text, "send 64 B, never, %s: p50 / p99 us", where[k]);
        row2(text, "%.0f / %.0f", middle(s->ours50), middle(s->ours99), middle(s->trip50),
             middle(s->trip99), middle(s->ratio), 3.0);
        if (!b->durable) continue;
        snprintf(text, sizeof text, "send 64 B, always, %s: p50 / p99 us", where[k]);
        row2(text, "%.0f / %.0f", middle(s->kept50), middle(s->kept99), middle(s->sum50),
             middle(s->sum99), middle(s->kept_ratio), 2.0);
        snprintf(raw, sizeof raw, "%.0f + %.0f", middle(s->trip50), middle(s->sync50));
        row("  its raw: round trip + append, fdatasync: us", "", raw, 0, 0);
    }
    if (n == 1) row("send 64 B, two processors", "there is one", "", 0, 0);
    for (k = 0; k < n; k++) {
        const sending *s = &at[k];
        snprintf(text, sizeof text, "1 sender, never, %s: messages/s", where[k]);
        row2(text, "%.0f", middle(s->ours_rate), 0, middle(s->trip_rate), 0,
             middle(s->rate_ratio), 0);
        if (!b->durable) continue;
        snprintf(text, sizeof text, "1 sender, always, %s: messages/s", where[k]);
        row2(text, "%.0f", middle(s->kept_rate), 0, middle(s->sum_rate), 0,
             middle(s->kept_rate_ratio), 0);
    }
}

/* ---- sixteen senders ---- */

typedef struct crowd {
    opcomms_peer *from;
    const receiver *to;
    int n;
} crowd;

static void *crowd_send(void *arg) {
    crowd *c = (crowd *)arg;
    int i;
    for (i = 0; i < c->n; i++) (void)send_one(c->from, c->to);
    return NULL;
}

static double crowd_rate(opcomms_peer *from, const receiver *to, int n) {
    pthread_t t[THREADS];
    crowd c;
    double start = now_us();
    int i;
    c.from = from;
    c.to = to;
    c.n = n;
    for (i = 0; i < THREADS; i++) {
        if (pthread_create(&t[i], NULL, crowd_send, &c) != 0) die("thread: %s", strerror(errno));
    }
    for (i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
    return THREADS * n / (now_us() - start) * 1e6;
}

/* Raw: sixteen messages of 64 bytes in one write, one answer, one sync. */
static void measure_crowd(bench *b) {
    double ours[ROUNDS], kept[ROUNDS], trip[ROUNDS], sync[ROUNDS], r1[ROUNDS], r2[ROUNDS];
    int round, i;
    for (round = 0; round < ROUNDS; round++) {
        double t = 0, s = 0;
        for (i = 0; i < 200; i++) t += raw_trip(b->raw, THREADS * SIZE);
        trip[round] = THREADS * 200 / t * 1e6;
        ours[round] = crowd_rate(b->from, &b->never, 200);
        r1[round] = ours[round] / trip[round];
        receiver_drain(&b->never);
        if (!b->durable) continue;
        for (i = 0; i < 50; i++) s += raw_append(b, THREADS * SIZE);
        sync[round] = THREADS / (t / 200 + s / 50) * 1e6;
        kept[round] = crowd_rate(b->from, &b->always, 50);
        r2[round] = kept[round] / sync[round];
        receiver_drain(&b->always);
    }
    row2("16 senders, never: messages/s", "%.0f", middle(ours), 0, middle(trip), 0, middle(r1), 0);
    if (!b->durable) return;
    row2("16 senders, always: messages/s", "%.0f", middle(kept), 0, middle(sync), 0, middle(r2), 0);
}

/* ---- handshakes ---- */

typedef struct bare_owner {
    opc__key key;
    uint8_t leaf[OPC__CERT_MAX];
    bare_id id;
} bare_owner;

static void bare_make(bare_owner *b, const key *k) {
    opc__key ca;
    opcomms_error err;
    size_t len = 0;
    memset(b, 0, sizeof *b);
    opc__key_builtin_ca(&ca);
    if (opc__key_from_pem(&b->key, k->pem, k->len, &err) != OPCOMMS_OK ||
        opc__cert_leaf(&b->key, &ca, b->leaf, sizeof b->leaf, &len, &err) != OPCOMMS_OK) {
        die("%s", err.text);
    }
    b->id.chain.data = b->leaf;
    b->id.chain.data_len = len;
    b->id.is_rsa = b->key.kind == OPC__KEY_RSA;
    b->id.rsa = b->key.rsa;
    b->id.ec = b->key.ec;
    if (b->id.is_rsa) {
        b->id.known.key_type = BR_KEYTYPE_RSA;
        b->id.known.key.rsa.n = b->key.n;
        b->id.known.key.rsa.nlen = b->key.n_len;
        b->id.known.key.rsa.e = b->key.e;
        b->id.known.key.rsa.elen = b->key.e_len;
    } else {
        b->id.known.key_type = BR_KEYTYPE_EC;
        b->id.known.key.ec.curve = b->key.ec.curve;
        b->id.known.key.ec.q = b->key.q;
        b->id.known.key.ec.qlen = b->key.q_len;
    }
}

/* What one handshake takes: on the clock, and of the processor at both ends together. */
typedef struct taken {
    double clock;
    double processor;
} taken;

static double processor_us(pid_t pid) {
    struct timespec t;
    clockid_t id = CLOCK_PROCESS_CPUTIME_ID;
    if (pid != 0 && clock_getcpuclockid(pid, &id) != 0) die("no clock of process %d", (int)pid);
    if (clock_gettime(id, &t) != 0) die("clock: %s", strerror(errno));
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* other 0: everything happens in this process. */
static taken begin(pid_t other) {
    taken t;
    t.processor = processor_us(0) + (other != 0 ? processor_us(other) : 0);
    t.clock = now_us();
    return t;
}

static taken end(pid_t other, taken start) {
    taken t;
    t.clock = now_us() - start.clock;
    t.processor = processor_us(0) + (other != 0 ? processor_us(other) : 0) - start.processor;
    return t;
}

static void less(taken *best, taken t) {
    if (t.clock < best->clock) best->clock = t.clock;
    if (t.processor < best->processor) best->processor = t.processor;
}

static taken bare_in_memory(const bare_owner *server, const bare_owner *client) {
    taken start = begin(0);
    if (!bare_pair(&server->id, &client->id, OPC__CERT_CA_DN, sizeof OPC__CERT_CA_DN)) {
        die("the bare pair's handshake failed");
    }
    return end(0, start);
}

/* A process that accepts one bare handshake after the other. */
static pid_t bare_start(const bare_owner *server, const bare_owner *client,
                        struct sockaddr_in *at) {
    int listener = listen_any(at);
    pid_t child = branch();
    while (child == 0) {
        int fd = accept(listener, NULL, NULL);
        no_delay(fd);
        if (!bare_accept(&server->id, &client->id, OPC__CERT_CA_DN, sizeof OPC__CERT_CA_DN, fd)) {
            _exit(1);
        }
        close(fd);
    }
    close(listener);
    return child;
}

/* As below: connect, handshake, 64 bytes there and 64 back. */
static taken bare_time(const bare_owner *server, const bare_owner *client,
                       const struct sockaddr_in *at, pid_t other) {
    taken took, start = begin(other);
    int fd = connect_to(at);
    if (!bare_connect(&client->id, &server->id, fd)) die("the bare handshake failed");
    took = end(other, start);
    close(fd);
    return took;
}

/* New peers at both ends, made before the clock starts: connect, handshake, one ping. */
static taken ours_time(receiver *r, const key *from, const key *to, char type) {
    opcomms_peer *peer;
    opcomms_error err;
    taken start, took;
    all_out(r->fd, &type, 1);
    all_in(r->fd, r->address, sizeof r->address);
    all_in(r->fd, &type, 1);
    peer = peer_make(from, NULL, OPCOMMS_DURABLE_NEVER);
    start = begin(r->pid);
    if (opcomms_ping(peer, to->hash, r->address, 0, &err) != OPCOMMS_OK) die("ping: %s", err.text);
    took = end(r->pid, start);
    opcomms_free(peer);
    return took;
}

/* Milliseconds of computing, during which whoever shares the processor takes time slices out of
   the middle. So the processor's time counts, the clock's is told, of each the best of a round.
   Everything on one processor: nothing of a handshake can be done by both ends at once. */
static void measure_handshake(receiver *r, const key *from, const key *to, char type,
                              const char *name) {
    static bare_owner server, client;
    struct sockaddr_in at;
    pid_t bare;
    double ours[3][ROUNDS], raw[3][ROUNDS], ratio[3][ROUNDS];
    char text[96];
    int round, i;
    bare_make(&server, to);
    bare_make(&client, from);
    bare = bare_start(&server, &client, &at);
    (void)ours_time(r, from, to, type);
    for (round = 0; round < ROUNDS; round++) {
        taken most = {1e9, 1e9}, memory = most, peers = most, pair = most;
        for (i = 0; i < TRIES; i++) {
            less(&memory, bare_in_memory(&server, &client));
            less(&peers, ours_time(r, from, to, type));
            less(&pair, bare_time(&server, &client, &at, bare));
        }
        ours[0][round] = ours[2][round] = peers.processor;
        ours[1][round] = peers.clock;
        raw[0][round] = pair.processor;
        raw[1][round] = pair.clock;
        raw[2][round] = memory.processor;
        for (i = 0; i < 3; i++) ratio[i][round] = ours[i][round] / raw[i][round];
    }
    kill(bare, SIGKILL);
    waitpid(bare, NULL, 0);
    children_count--;
    snprintf(text, sizeof text, "full handshake, %s: us of processor", name);
    row2(text, "%.0f", middle(ours[0]), 0, middle(raw[0]), 0, middle(ratio[0]), 1.3);
    row2("  the same by the clock", "%.0f", middle(ours[1]), 0, middle(raw[1]), 0,
         middle(ratio[1]), 0);
    row2("  raw: the bare pair in memory", "%.0f", middle(ours[2]), 0, middle(raw[2]), 0,
         middle(ratio[2]), 0);
}

/* ---- opening a log ---- */

static uint64_t log_make(const key *k, const char *path) {
    static uint8_t data[1024];
    opc__mem mem;
    opc__log_options o;
    opc__store *s = NULL;
    opcomms_error err;
    opc__msg_meta m;
    uint64_t uid, ref, position;
    opcomms_err rc = OPCOMMS_OK;
    memset(&mem, 0, sizeof mem);
    mem.alloc = opc__plat_malloc;
    mem.release = opc__plat_free;
    memset(&o, 0, sizeof o);
    o.plat = opc__plat_default();
    o.mem = &mem;
    o.path = path;
    o.puts_max = 1;
    o.log_bytes_max = (uint64_t)1 << 30;
    (void)opc__str_hash_parse(k->hash, 64, o.key_hash);
    if (opc__log_open(&o, &s, &err) != OPCOMMS_OK) die("%s", err.text);
    memset(&m, 0, sizeof m);
    m.dest = (const uint8_t *)k->hash;
    m.dest_len = 64;
    m.bytes = sizeof data;
    m.wire_bytes = sizeof data;
    while (rc == OPCOMMS_OK && s->c->bytes(s) < 100000000u) {
        uint32_t put = 0;
        rc = s->c->begin(s, &put);
        if (rc == OPCOMMS_OK) rc = s->c->data(s, put, data, sizeof data);
        if (rc == OPCOMMS_OK) rc = s->c->commit(s, put, &m, &uid, &ref, &position);
        if (rc != OPCOMMS_OK) break;
        if (s->c->room(s) < 65536u) rc = s->c->write(s);
    }
    if (rc == OPCOMMS_OK) rc = s->c->close(s);
    if (rc != OPCOMMS_OK) die("the log for the open figure: %s", opc__err_text(rc));
    return uid;
}

static double log_read(const char *path) {
    static char buf[1 << 20];
    double start = now_us();
    ssize_t n;
    int fd = open(path, O_RDONLY);
    if (fd < 0) die("%s: %s", path, strerror(errno));
    while ((n = read(fd, buf, sizeof buf)) > 0) {
    }
    close(fd);
    return now_us() - start;
}

static void measure_open(const key *k) {
    double ours[ROUNDS], raw[ROUNDS], r[ROUNDS];
    char path[600], name[96];
    uint64_t count;
    int round;
    snprintf(path, sizeof path, "%s/big.log", dir);
    count = log_make(k, path);
    for (round = 0; round < ROUNDS; round++) {
        opcomms_peer *peer;
        double start;
        raw[round] = log_read(path);
        start = now_us();
        peer = peer_make(k, "big.log", OPCOMMS_DURABLE_NEVER);
        ours[round] = now_us() - start;
        r[round] = ours[round] / raw[round];
        opcomms_free(peer);
    }
    snprintf(name, sizeof name, "open 100 MB, %u unread; raw: read it: ms", (unsigned)count);
    row2(name, "%.0f", middle(ours) / 1e3, 0, middle(raw) / 1e3, 0,
         middle(r), 0);
}

int main(int argc, char **argv) {
    static key sender, plain, synced, rsa[2], ec[2], logger;
    receiver fresh;
    bench b;
    char type[64], text[96];
    int i;
    if (argc != 2 || strlen(argv[1]) >= sizeof dir) die("usage: bench DIRECTORY");
    strcpy(dir, argv[1]);
    memset(&b, 0, sizeof b);
    places();
    fs_type(dir, type, sizeof type);
    b.durable = strcmp(type, "tmpfs") != 0 && strcmp(type, "ramfs") != 0;
    if (opcomms_allow_list_new(NULL, &allow) || opcomms_routing_table_new(NULL, &routes) ||
        opcomms_routing_table_allow_all(routes, 1)) {
        die("no memory");
    }
    key_make(&sender, OPCOMMS_KEY_P256);
    key_make(&plain, OPCOMMS_KEY_P256);
    key_make(&synced, OPCOMMS_KEY_P256);
    key_make(&logger, OPCOMMS_KEY_P256);
    key_make(&ec[0], OPCOMMS_KEY_P256);
    key_make(&ec[1], OPCOMMS_KEY_P256);
    key_make(&rsa[0], OPCOMMS_KEY_RSA_2048);
    key_make(&rsa[1], OPCOMMS_KEY_RSA_2048);
    keys_rsa = &rsa[1];
    keys_ec = &ec[1];
    /* All processes begin before the first thread does. */
    b.raw = raw_start();
    receiver_start(&b.never, &plain, "never.log", OPCOMMS_DURABLE_NEVER);
    receiver_start(&b.always, &synced, "always.log", OPCOMMS_DURABLE_ALWAYS);
    receiver_start(&fresh, &rsa[1], NULL, OPCOMMS_DURABLE_NEVER);
    b.from = peer_make(&sender, "sender.log", OPCOMMS_DURABLE_ALWAYS);
    b.file = raw_file();
    snprintf(text, sizeof text, "%s%s", type, b.durable ? "" : ": no durable figures");
    row("file system", text, "", 0, 0);
    measure_send(&b);
    measure_crowd(&b);
    opcomms_free(b.from);
    place(getpid(), &first);
    for (i = 0; i < children_count; i++) place(children[i], &first);
    measure_handshake(&fresh, &rsa[0], &rsa[1], 'r', "RSA-2048");
    measure_handshake(&fresh, &ec[0], &ec[1], 'e', "P-256");
    place(getpid(), &anywhere);
    measure_open(&logger);
    close(b.never.fd);
    close(b.always.fd);
    close(fresh.fd);
    close(b.file);
    close(b.raw);
    while (children_count > 0) waitpid(children[--children_count], NULL, 0);
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    return 0;
}
