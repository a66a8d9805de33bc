/* For programs that measure one sender process and one receiver process: the sender is the program
   itself, on the first processor; the receiver is a child of it, on the last. They share a page for
   addresses and results. Also the raw limits that more than one of them takes: a TCP round trip and
   an append with fdatasync. Define _GNU_SOURCE before the first header. */
#ifndef BENCH_RAW_H
#define BENCH_RAW_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RAW_FN static __attribute__((unused))
#define RAW_SAMPLES (1 << 18)
#define RAW_STRIDE 16 /* every so many messages one is timed */

typedef struct raw_result {
    uint64_t count; /* messages between the mark and the end */
    double us;      /* between the same */
    double p50;     /* from handing over to having: us */
    double p99;
    long kb; /* the most that was resident */
} raw_result;

/* What both processes see. A stage is reached once and never left. */
typedef struct raw_shared {
    volatile int stage; /* of the receiver: 1 ready, 2 result is there */
    volatile int order; /* to the receiver, counts up */
    volatile int done;  /* the order that was done last */
    char hash[65];
    char address[128];
    uint8_t key[64];
    raw_result result;
} raw_shared;

static raw_shared *raw_page;
static pid_t raw_child; /* the receiver */

RAW_FN void raw_die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    if (errno != 0) fprintf(stderr, ": %s", strerror(errno));
    fprintf(stderr, "\n");
    va_end(args);
    if (raw_child > 0) kill(raw_child, SIGKILL);
    exit(1);
}

RAW_FN double raw_now(void) { /* us */
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* Waits until a number in the page is another than `seen`, but not longer than that. */
RAW_FN void raw_wait(volatile int *what, int seen, long ms) {
    struct timespec t;
    t.tv_sec = ms / 1000;
    t.tv_nsec = ms % 1000 * 1000000;
    (void)syscall(SYS_futex, (int *)what, FUTEX_WAIT, seen, &t, NULL, 0); /* may return early */
}

RAW_FN void raw_set(volatile int *what, int value) {
    __atomic_store_n(what, value, __ATOMIC_RELEASE);
    (void)syscall(SYS_futex, (int *)what, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

/* The first processor we may use, or the last: all threads this one starts stay there too. */
RAW_FN void raw_place(int last) {
    static cpu_set_t all; /* as it was in the beginning */
    static int known;
    cpu_set_t one;
    size_t i, at = 0;
    if (!known && sched_getaffinity(0, sizeof all, &all) != 0) raw_die("processors");
    known = 1;
    for (i = CPU_SETSIZE; i-- > 0;) {
        if (!CPU_ISSET(i, &all)) continue;
        at = i;
        if (last) break;
    }
    CPU_ZERO(&one);
    CPU_SET(at, &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) raw_die("processors");
}

/* 0: we are the receiver, which ends with its parent. RAW_FREE in the environment: where the
   scheduler likes. */
RAW_FN pid_t raw_branch(void) {
    pid_t child, parent = getpid();
    fflush(stdout);
    child = fork();
    if (child < 0) raw_die("fork");
    if (child == 0) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) _exit(1);
        if (getenv("RAW_FREE") == NULL) raw_place(1);
    }
    return child;
}

/* 0: we are the receiver. */
RAW_FN pid_t raw_start(void) {
    raw_page = (raw_shared *)mmap(NULL, sizeof *raw_page, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (raw_page == MAP_FAILED) raw_die("mmap");
    raw_child = raw_branch();
    if (raw_child > 0 && getenv("RAW_FREE") == NULL) raw_place(0);
    return raw_child;
}

RAW_FN void raw_reach(int stage) { raw_set(&raw_page->stage, stage); }

RAW_FN void raw_alive(void) {
    int status;
    if (waitpid(raw_child, &status, WNOHANG) != raw_child) return;
    raw_child = 0;
    errno = 0;
    raw_die("the receiver has ended with status %d", status);
}

RAW_FN void raw_await(volatile int *what, int value) {
    double limit = raw_now() + 30e6;
    int now;
    while ((now = __atomic_load_n(what, __ATOMIC_ACQUIRE)) < value) {
        raw_alive();
        if (raw_now() > limit) raw_die("the receiver is silent");
        raw_wait(what, now, 100);
    }
}

/* Lets the receiver do something and waits until it is done. */
RAW_FN void raw_order(void) {
    int order = raw_page->order + 1;
    raw_set(&raw_page->order, order);
    raw_await(&raw_page->done, order);
}

RAW_FN long raw_kb(void) {
    char line[256];
    long kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "VmHWM:", 6) == 0) kb = strtol(line + 6, NULL, 10);
    }
    if (f != NULL) fclose(f);
    return kb;
}

/* ---- figures ---- */

RAW_FN int raw_by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value below which a share of the samples lies; sorts them. */
RAW_FN double raw_share(double *v, size_t n, double part) {
    if (n == 0) return 0;
    qsort(v, n, sizeof *v, raw_by_value);
    return v[(size_t)(part * (double)(n - 1) + 0.5)];
}

RAW_FN void raw_tell(const char *name, size_t size, const char *what, double value) {
    printf("%s.%u.%s %.8g\n", name, (unsigned)size, what, value);
}

/* ---- messages: number, time of sending or 0, kind ---- */

#define RAW_WARM 0
#define RAW_MARK 1 /* counting begins behind it */
#define RAW_END 2

static uint64_t raw_sent;

RAW_FN void raw_fill(uint8_t *p, int kind) {
    double at = raw_sent % RAW_STRIDE == 0 ? raw_now() : 0;
    memcpy(p, &raw_sent, 8);
    memcpy(p + 8, &at, 8);
    p[16] = (uint8_t)kind;
    raw_sent++;
}

/* The receiver's side: order, number and times. */
static struct {
    uint64_t next;
    uint64_t mark;
    double begin;
    int counting;
    size_t samples;
    double sample[RAW_SAMPLES];
} raw_heard;

/* 1: that was the last. `now` 0: the clock is read when it is needed. A durable receiver calls it
   when the message is on disk. */
RAW_FN int raw_hear(const uint8_t *p, double now) {
    raw_result *r = &raw_page->result;
    uint64_t number;
    double at;
    memcpy(&number, p, 8);
    memcpy(&at, p + 8, 8);
    if (number != raw_heard.next) {
        errno = 0;
        raw_die("message %llu came where %llu was due", (unsigned long long)number,
                (unsigned long long)raw_heard.next);
    }
    raw_heard.next++;
    if (p[16] == RAW_WARM && at == 0) return 0;
    if (now == 0) now = raw_now();
    if (raw_heard.counting && at != 0 && raw_heard.samples < RAW_SAMPLES) {
        raw_heard.sample[raw_heard.samples++] = now - at;
    }
    if (p[16] == RAW_MARK) {
        raw_heard.counting = 1;
        raw_heard.mark = number;
        raw_heard.begin = now;
    }
    if (p[16] != RAW_END) return 0;
    r->count = number - raw_heard.mark;
    r->us = now - raw_heard.begin;
    r->p99 = raw_share(raw_heard.sample, raw_heard.samples, 0.99);
    r->p50 = raw_share(raw_heard.sample, raw_heard.samples, 0.5);
    r->kb = raw_kb();
    return 1;
}

/* A sender's loop: for a quarter of the time it warms up, then it is counted. `put` sends one
   message, and waits as long as it has to. */
RAW_FN void raw_flow(double seconds, void (*put)(uint8_t *p, void *user), uint8_t *p, void *user) {
    double mark = raw_now() + seconds * 0.25e6, end = mark + seconds * 1e6;
    int marked = 0;
    for (;;) {
        double now = raw_sent % RAW_STRIDE == 0 ? raw_now() : 0;
        int kind = RAW_WARM;
        if (!marked && now > mark) {
            kind = RAW_MARK;
            marked = 1;
        } else if (now > end) {
            kind = RAW_END;
        }
        raw_fill(p, kind);
        put(p, user);
        if (kind == RAW_END) return;
    }
}

/* The sender tells what the receiver found. */
RAW_FN void raw_report(const char *name, size_t size) {
    const raw_result *r = &raw_page->result;
    raw_await(&raw_page->stage, 2);
    raw_tell(name, size, "rate", (double)r->count / r->us * 1e6);
    raw_tell(name, size, "p50", r->p50);
    raw_tell(name, size, "p99", r->p99);
    raw_tell(name, size, "kb_out", (double)raw_kb());
    raw_tell(name, size, "kb_in", (double)r->kb);
}

/* ---- TCP ---- */

RAW_FN void raw_all_out(int fd, const void *p, size_t n) {
    const char *c = (const char *)p;
    while (n > 0) {
        ssize_t put = send(fd, c, n, MSG_NOSIGNAL);
        if (put <= 0) raw_die("send");
        c += put;
        n -= (size_t)put;
    }
}

/* 0: the other end is done. */
RAW_FN int raw_all_in(int fd, void *p, size_t n) {
    char *c = (char *)p;
    while (n > 0) {
        ssize_t got = recv(fd, c, n, 0);
        if (got <= 0) return 0;
        c += got;
        n -= (size_t)got;
    }
    return 1;
}

RAW_FN int raw_listen(struct sockaddr_in *at) {
    socklen_t len = sizeof *at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(at, 0, sizeof *at);
    at->sin_family = AF_INET;
    at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)at, sizeof *at) != 0 || listen(fd, 8) != 0 ||
        getsockname(fd, (struct sockaddr *)at, &len) != 0) {
        raw_die("listen");
    }
    return fd;
}

RAW_FN void raw_no_delay(int fd) {
    int on = 1;
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) raw_die("socket");
}

RAW_FN int raw_connect(const struct sockaddr_in *at) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)at, sizeof *at) != 0) raw_die("connect");
    raw_no_delay(fd);
    return fd;
}

#define RAW_ANSWER 64u

/* A process that answers each `size` bytes by 64; the result is connected to it. */
RAW_FN int raw_echo(size_t size) {
    static char buf[65536];
    struct sockaddr_in at;
    int listener = raw_listen(&at);
    if (raw_branch() == 0) {
        int fd = accept(listener, NULL, NULL);
        raw_no_delay(fd);
        while (raw_all_in(fd, buf, size)) raw_all_out(fd, buf, RAW_ANSWER);
        _exit(0);
    }
    close(listener);
    return raw_connect(&at);
}

RAW_FN double raw_trip(int fd, size_t size) {
    static char buf[65536];
    double start = raw_now();
    raw_all_out(fd, buf, size);
    if (!raw_all_in(fd, buf, RAW_ANSWER)) raw_die("the other process has ended");
    return raw_now() - start;
}

/* ---- appending ---- */

#define RAW_SPACE (64u << 20) /* zeros written ahead, over and over: the best there is */

/* Whether the file system keeps what is synced. */
RAW_FN int raw_lasting(const char *dir) {
    struct statfs fs;
    if (statfs(dir, &fs) != 0) raw_die("%s", dir);
    return fs.f_type != 0x01021994 && (uint32_t)fs.f_type != 0x858458f6u; /* tmpfs, ramfs */
}

/* Made once and used by all raw appends and the log beside libzmq. */
RAW_FN int raw_file(const char *dir) {
    static char zeros[1 << 20];
    char path[600];
    size_t i;
    int fd;
    if (!raw_lasting(dir)) raw_die("%s is a memory file system", dir);
    snprintf(path, sizeof path, "%s/raw", dir);
    fd = open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0) raw_die("%s", path);
    if (lseek(fd, 0, SEEK_END) == (off_t)RAW_SPACE) return fd;
    for (i = 0; i < RAW_SPACE / sizeof zeros; i++) {
        if (write(fd, zeros, sizeof zeros) != (ssize_t)sizeof zeros) raw_die("write");
    }
    if (fsync(fd) != 0) raw_die("fsync");
    return fd;
}

static off_t raw_at;

RAW_FN void raw_append(int fd, const void *p, size_t n) {
    if (raw_at + (off_t)n > (off_t)RAW_SPACE) raw_at = 0;
    if (pwrite(fd, p, n, raw_at) != (ssize_t)n || fdatasync(fd) != 0) raw_die("append");
    raw_at += (off_t)n;
}

#endif
