/* The raw limits: what no implementation can be faster than. Prints lines "name.size.what value".
   raw tls SIZE SECONDS             bare BearSSL, AES-128-GCM, pinned keys: messages in full records
   raw durable SIZE SECONDS WINDOW DIR   the same; one thread opens the records, another appends,
                                   syncs and acknowledges; at most WINDOW messages are under way
   raw append SIZE SECONDS DIR COUNT     COUNT messages are appended and synced, again and again
   raw aead SIZE SECONDS           AES-128-GCM alone */
#define _GNU_SOURCE
#include "raw.h"

#include <pthread.h>

#define BARE_OUT (16384 + 85)
#include "bare.h"

static size_t size;
static uint64_t window; /* 0: no log */

/* ---- TLS ---- */

static bare_id ids[2];

static void id_make(bare_id *id, uint64_t seed) {
    static unsigned char certificate[64]; /* nobody looks at it: the key is known */
    br_hmac_drbg_context random;
    unsigned char *buf = (unsigned char *)malloc(BR_EC_KBUF_PRIV_MAX_SIZE);
    unsigned char *pub = (unsigned char *)malloc(BR_EC_KBUF_PUB_MAX_SIZE);
    br_hmac_drbg_init(&random, &br_sha256_vtable, &seed, sizeof seed);
    if (br_ec_keygen(&random.vtable, br_ec_get_default(), &id->ec, buf, BR_EC_secp256r1) == 0 ||
        br_ec_compute_pub(br_ec_get_default(), &id->known.key.ec, pub, &id->ec) == 0) {
        raw_die("key");
    }
    id->known.key_type = BR_KEYTYPE_EC;
    id->chain.data = certificate;
    id->chain.data_len = sizeof certificate;
}

/* Messages straddle records: what is left of one begins the next buffer. Several records share a
   system call, which makes a tenth or so. */
typedef struct stream {
    bare_end end;
    int fd;
    uint8_t *part; /* receiver: a message that is not whole */
    size_t have;
    size_t wire_len;
    uint8_t wire[4 * BARE_OUT];
} stream;

static stream s;

static void send_records(void) {
    raw_all_out(s.fd, s.wire, s.wire_len);
    s.wire_len = 0;
}

/* Moves what the engine has sealed behind what waits to be sent. */
static void collect(void) {
    for (;;) {
        size_t n = 0;
        const unsigned char *p = br_ssl_engine_sendrec_buf(s.end.eng, &n);
        if (p == NULL) return;
        if (n > sizeof s.wire - s.wire_len) send_records();
        memcpy(s.wire + s.wire_len, p, n);
        s.wire_len += n;
        br_ssl_engine_sendrec_ack(s.end.eng, n);
    }
}

static void put(uint8_t *p, void *user) {
    size_t at = 0;
    (void)user;
    while (at < size) {
        size_t n = 0;
        unsigned char *q = br_ssl_engine_sendapp_buf(s.end.eng, &n);
        if (q == NULL) {
            collect();
            if (br_ssl_engine_current_state(s.end.eng) == BR_SSL_CLOSED) raw_die("TLS");
            continue;
        }
        if (n > size - at) n = size - at;
        memcpy(q, p + at, n);
        br_ssl_engine_sendapp_ack(s.end.eng, n); /* a full record is sealed by itself */
        at += n;
    }
}

/* ---- two buffers: one is filled while the other is written and synced ---- */

#define LOG_BYTES (4u << 20)

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint8_t *fill;
    uint8_t *flush;
    size_t used;
    int file;
    int back; /* a socket for what is synced */
} kept = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL, NULL, 0, -1, -1};

static void keep(const uint8_t *p) {
    pthread_mutex_lock(&kept.lock);
    while (kept.used + size > LOG_BYTES) pthread_cond_wait(&kept.changed, &kept.lock);
    memcpy(kept.fill + kept.used, p, size);
    if (kept.used == 0) pthread_cond_signal(&kept.changed);
    kept.used += size;
    pthread_mutex_unlock(&kept.lock);
}

static void *keep_synced(void *nothing) {
    uint64_t count = 0;
    int over = 0;
    while (!over) {
        uint8_t *p;
        size_t n, at;
        double now;
        pthread_mutex_lock(&kept.lock);
        while (kept.used == 0) pthread_cond_wait(&kept.changed, &kept.lock);
        p = kept.fill;
        n = kept.used;
        kept.fill = kept.flush;
        kept.flush = p;
        kept.used = 0;
        pthread_cond_signal(&kept.changed);
        pthread_mutex_unlock(&kept.lock);
        raw_append(kept.file, p, n);
        now = raw_now();
        for (at = 0; at < n; at += size) over = raw_hear(p + at, now);
        count += n / size;
        raw_all_out(kept.back, &count, sizeof count);
    }
    raw_reach(2);
    return nothing;
}

static void keep_start(const char *dir, int listener) {
    pthread_t thread;
    kept.file = raw_file(dir);
    kept.back = accept(listener, NULL, NULL);
    raw_no_delay(kept.back);
    kept.fill = (uint8_t *)malloc(LOG_BYTES);
    kept.flush = (uint8_t *)malloc(LOG_BYTES);
    if (pthread_create(&thread, NULL, keep_synced, NULL) != 0) raw_die("thread");
}

/* ---- the receiver ---- */

static int heard(const unsigned char *p, size_t n) {
    while (n > 0) {
        const unsigned char *whole = p;
        size_t some = size - s.have < n ? size - s.have : n;
        if (some < size) { /* a part of one */
            memcpy(s.part + s.have, p, some);
            whole = s.part;
        }
        s.have += some;
        p += some;
        n -= some;
        if (s.have < size) continue;
        s.have = 0;
        if (window > 0) {
            keep(whole);
        } else if (raw_hear(whole, 0)) {
            return 1;
        }
    }
    return 0;
}

/* Opens what was received. */
static int open_records(void) {
    size_t at = 0;
    while (at < s.wire_len) {
        size_t n = 0;
        unsigned char *p = br_ssl_engine_recvrec_buf(s.end.eng, &n);
        if (p == NULL) raw_die("TLS, receiver");
        if (n > s.wire_len - at) n = s.wire_len - at;
        memcpy(p, s.wire + at, n);
        br_ssl_engine_recvrec_ack(s.end.eng, n);
        at += n;
        p = br_ssl_engine_recvapp_buf(s.end.eng, &n);
        if (p == NULL) continue;
        if (heard(p, n)) return 1;
        br_ssl_engine_recvapp_ack(s.end.eng, n);
    }
    return 0;
}

static void take_all(int listener) {
    s.fd = accept(listener, NULL, NULL);
    raw_no_delay(s.fd);
    if (!bare_server(&s.end, &ids[0], &ids[1], "", 0)) raw_die("TLS");
    if (!bare_until(&s.end, s.fd, BR_SSL_SENDAPP)) raw_die("TLS, receiver");
    do {
        ssize_t n = recv(s.fd, s.wire, sizeof s.wire, 0);
        if (n < 0) raw_die("recv");
        if (n == 0) pause(); /* durable: the other thread ends it */
        s.wire_len = (size_t)n;
    } while (!open_records());
    raw_reach(2);
    pause();
}

/* ---- the sender ---- */

static uint64_t acked;
static int back;

static void acks(int flags) {
    uint64_t count;
    while (recv(back, &count, sizeof count, flags | MSG_WAITALL) == (ssize_t)sizeof count) {
        acked = count;
        flags = MSG_DONTWAIT;
    }
}

static void put_all(void) {
    br_ssl_engine_flush(s.end.eng, 0);
    collect();
    send_records();
}

/* Every record leaves at once; before we wait, what is in the last one too. */
static void put_within(uint8_t *p, void *user) {
    put(p, user);
    if (s.wire_len > 0) send_records();
    if (raw_sent - acked >= window) {
        put_all();
        acks(0);
        if (raw_sent - acked >= window) raw_die("the receiver has ended");
    } else if (raw_sent % 64 == 0) {
        acks(MSG_DONTWAIT);
    }
}

static void tls(double seconds, const char *dir) {
    struct sockaddr_in at;
    int listener = raw_listen(&at);
    uint8_t *p = (uint8_t *)calloc(1, size);
    char name[64] = "raw.tls";
    s.part = (uint8_t *)calloc(1, size);
    id_make(&ids[0], 1);
    id_make(&ids[1], 2);
    if (raw_start() == 0) {
        if (window > 0) keep_start(dir, listener);
        take_all(listener);
    }
    if (window > 0) back = raw_connect(&at);
    s.fd = raw_connect(&at);
    if (!bare_client(&s.end, &ids[1], &ids[0]) || !bare_until(&s.end, s.fd, BR_SSL_SENDAPP)) {
        raw_die("TLS, sender: %d", br_ssl_engine_last_error(s.end.eng));
    }
    raw_flow(seconds, window > 0 ? put_within : put, p, NULL);
    put_all();
    while (window > 0 && acked < raw_sent) acks(0);
    if (window > 0) snprintf(name, sizeof name, "raw.durable.%u", (unsigned)window);
    raw_report(name, size);
    kill(raw_child, SIGKILL);
    waitpid(raw_child, NULL, 0);
}

/* ---- append and fdatasync ---- */

static void append(double seconds, const char *dir, size_t count) {
    static double took[65536];
    int fd = raw_file(dir);
    uint8_t *p = (uint8_t *)calloc(count, size);
    double begin, end, now;
    size_t n = 0;
    char name[64];
    memset(p, 'r', count * size);
    raw_append(fd, p, count * size);
    begin = now = raw_now();
    end = begin + seconds * 1e6;
    while (now < end && n < sizeof took / sizeof took[0]) {
        double before = now;
        raw_append(fd, p, count * size);
        now = raw_now();
        took[n++] = now - before;
    }
    snprintf(name, sizeof name, "raw.append.%u", (unsigned)count);
    raw_tell(name, size, "rate", (double)(n * count) / (now - begin) * 1e6);
    raw_tell(name, size, "p99", raw_share(took, n, 0.99));
    raw_tell(name, size, "p50", raw_share(took, n, 0.5));
}

/* ---- AEAD ---- */

static void aead(double seconds) {
    static const unsigned char key[16] = {1}, iv[12] = {2}, head[13] = {3};
    union {
        br_aes_gen_ctr_keys any;
        br_aes_x86ni_ctr_keys ni;
        br_aes_ct64_ctr_keys ct;
    } aes;
    const br_block_ctr_class *ctr = br_aes_x86ni_ctr_get_vtable();
    br_ghash ghash = br_ghash_pclmul_get();
    br_gcm_context gcm;
    unsigned char tag[16], *p = (unsigned char *)calloc(1, size);
    double begin, now;
    uint64_t n = 0;
    if (ctr == NULL) ctr = &br_aes_ct64_ctr_vtable;
    if (ghash == 0) ghash = &br_ghash_ctmul64;
    ctr->init((const br_block_ctr_class **)(void *)&aes, key, sizeof key);
    br_gcm_init(&gcm, (const br_block_ctr_class **)(void *)&aes, ghash);
    begin = raw_now();
    do {
        int i;
        for (i = 0; i < 64; i++) {
            br_gcm_reset(&gcm, iv, sizeof iv);
            br_gcm_aad_inject(&gcm, head, sizeof head);
            br_gcm_flip(&gcm);
            br_gcm_run(&gcm, 1, p, size);
            br_gcm_get_tag(&gcm, tag);
        }
        n += 64;
        now = raw_now();
    } while (now - begin < seconds * 1e6);
    raw_tell("raw.aead", size, "mb", (double)(n * size) / (now - begin));
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    size = (size_t)strtoul(argv[2], NULL, 10);
    if (size < 64 || size > 65536) return 2;
    if (strcmp(argv[1], "tls") == 0) {
        tls(strtod(argv[3], NULL), NULL);
    } else if (strcmp(argv[1], "durable") == 0 && argc == 6) {
        window = strtoul(argv[4], NULL, 10);
        tls(strtod(argv[3], NULL), argv[5]);
    } else if (strcmp(argv[1], "append") == 0 && argc == 6) {
        append(strtod(argv[3], NULL), argv[4], (size_t)strtoul(argv[5], NULL, 10));
    } else if (strcmp(argv[1], "aead") == 0) {
        aead(strtod(argv[3], NULL));
    } else {
        return 2;
    }
    return 0;
}
