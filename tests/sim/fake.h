/* A fake operating system for opcomms: one clock, one wire, one seed, any number of hosts with a
   disk each. Nothing here looks at real time, real files or real randomness, so a run is a function
   of its seed. Include after opcomms.h (OPCOMMS_IMPLEMENTATION) and test.h.

   Disk    What is written lies in a cache; a sync moves it to the platter. A power cut keeps any
           subset of the unsynced sectors (512 or 4 096 bytes, each whole) and any of the sizes the
           file had since. Names are durable after dir_sync only. A sync that fails leaves the
           cache as it is and forgets what it should have written, as Linux does.
   Wire    Per connection: pieces, delay, window, and a cut at byte N of either direction that
           resets, half-closes or stalls.
   Faults  Every call can fail, or be short, at its n-th time; a host can lose power at any call. */
#ifndef OPCOMMS_FAKE_H
#define OPCOMMS_FAKE_H

/* BearSSL seeds itself from the operating system when it can. Here it must not: the platform's
   randomness is all there is, and a replayed seed gives the same bytes on the wire. */
br_prng_seeder br_prng_seeder_system(const char **name) {
    if (name != NULL) *name = "none";
    return 0;
}

#define FAKE_HOSTS 48
#define FAKE_FILES 16
#define FAKE_NEVER UINT64_MAX

enum { /* calls that can fail; bits of fake_host.fail_ops */
    FAKE_RANDOM, FAKE_DIR_OPEN, FAKE_DIR_SYNC, FAKE_OPEN, FAKE_LOCK, FAKE_SIZE, FAKE_READ,
    FAKE_WRITE, FAKE_TRUNCATE, FAKE_SYNC, FAKE_RENAME, FAKE_REMOVE, FAKE_LISTEN, FAKE_ACCEPT,
    FAKE_CONNECT, FAKE_CONNECTED, FAKE_RECV, FAKE_SEND, FAKE_WAIT, FAKE_WAKE, FAKE_OPS
};
#define FAKE_ALL_OPS ((1u << FAKE_OPS) - 1u)
#define FAKE_DISK_OPS                                                                        \
    (1u << FAKE_DIR_OPEN | 1u << FAKE_DIR_SYNC | 1u << FAKE_OPEN | 1u << FAKE_LOCK |         \
     1u << FAKE_SIZE | 1u << FAKE_READ | 1u << FAKE_WRITE | 1u << FAKE_TRUNCATE |            \
     1u << FAKE_SYNC | 1u << FAKE_RENAME | 1u << FAKE_REMOVE)

enum { FAKE_ERROR, FAKE_SHORT, FAKE_NO_SPACE }; /* how a write fails (reads: error or short) */
enum { FAKE_RESET, FAKE_FIN, FAKE_STALL };      /* what a cut does */
enum { FAKE_FREE, FAKE_DIR, FAKE_FILE, FAKE_LISTENER, FAKE_SOCK, FAKE_WAKER };

/* Not every test uses all of it. */
#define FAKE_FN static __attribute__((unused))

typedef struct fake fake;
typedef struct fake_host fake_host;

/* ---- memory ---- */

typedef struct fake_memory {
    opcomms_allocator allocator;
    size_t used;
    uint64_t calls;
    uint64_t fail_at; /* 0: never */
    uint64_t blocks;
    int wrong_size;
} fake_memory;

FAKE_FN void *fake_alloc(void *user, size_t bytes) {
    fake_memory *m = (fake_memory *)user;
    size_t *p;
    m->calls++;
    if (m->fail_at != 0 && m->calls == m->fail_at) return NULL;
    p = (size_t *)malloc(bytes + 16);
    if (p == NULL) abort();
    p[0] = bytes;
    memset((uint8_t *)p + 16, 0xa5, bytes);
    m->used += bytes;
    m->blocks++;
    return (uint8_t *)p + 16;
}

FAKE_FN void fake_release(void *user, void *at, size_t bytes) {
    fake_memory *m = (fake_memory *)user;
    size_t *p = (size_t *)(void *)((uint8_t *)at - 16);
    if (p[0] != bytes) m->wrong_size = 1;
    m->used -= p[0];
    m->blocks--;
    free(p);
}

FAKE_FN void fake_memory_init(fake_memory *m) {
    memset(m, 0, sizeof *m);
    m->allocator.alloc = fake_alloc;
    m->allocator.release = fake_release;
    m->allocator.user = m;
}

/* ---- structures ---- */

/* One sector's image after one write, or one size the file had: not yet on the platter. */
typedef struct fake_dirty {
    uint64_t at; /* sector offset */
    uint32_t len;
    uint8_t *image; /* NULL: a size */
    uint64_t size;
} fake_dirty;

typedef struct fake_file {
    int used;
    int named;       /* has a name now */
    int named_disk;  /* has a name on the platter */
    char name[64];
    char name_disk[64];
    uint8_t *cache;
    uint64_t size, cap;
    uint8_t *disk;
    uint64_t disk_size, disk_cap;
    fake_dirty *dirty;
    size_t dirty_count, dirty_cap;
    intptr_t locked; /* handle that holds the lock */
} fake_file;

/* A change of a name, not yet durable. */
typedef struct fake_name {
    int file;     /* that gets the name; -1: the name goes */
    char name[64];
    char old[64]; /* rename: the name it had */
} fake_name;

typedef struct fake_chunk {
    uint64_t at_us;
    size_t len;
} fake_chunk;

typedef struct fake_pipe {
    uint8_t *p;
    size_t head, len, cap;
    fake_chunk *chunk;
    size_t chunk_head, chunks, chunks_cap;
    uint64_t last_us;
    uint64_t sent;  /* bytes ever taken from the writer */
    uint64_t given; /* bytes ever given to the reader */
    int fin;        /* the writer has ended */
    int swallow;    /* what is written from now on vanishes */
} fake_pipe;

typedef struct fake_cut {
    uint64_t at; /* FAKE_NEVER: no cut */
    int how;
} fake_cut;

typedef struct fake_wire {
    size_t piece_max; /* most bytes moved by one call; 0: no limit */
    int random;       /* 1 to piece_max at random instead */
    uint64_t delay_min_us, delay_max_us;
    size_t window; /* bytes on the way in one direction */
    fake_cut cut[2]; /* 0: client to server */
} fake_wire;

typedef struct fake_conn {
    int used;
    fake_host *host[2]; /* 0 client, 1 server (NULL: nobody there) */
    opcomms_address addr[2];
    int open[2];
    int gone[2]; /* that end lost power: silence */
    int accepted;
    int refused;
    int reset;
    uint64_t up_us; /* FAKE_NEVER: never */
    fake_wire wire;
    fake_pipe pipe[2]; /* [0] client to server */
} fake_conn;

typedef struct fake_handle {
    int kind;
    fake_host *host;
    int index; /* file, conn */
    int side;
    int signalled;
    opcomms_address address;
} fake_handle;

struct fake_host {
    fake *world;
    opcomms_platform plat;
    opcomms_address ip; /* port 0 */
    int no_clock;
    uint32_t sector;
    fake_file file[FAKE_FILES];
    fake_name *names;
    size_t names_count, names_cap;
    int dead; /* every call fails until fake_boot */
    int silent_death;
    int mute;      /* connections are made but never accepted */
    int blackhole; /* connecting never ends */
    uint32_t open_handles;
    uint64_t syncs;       /* successful file syncs */
    uint64_t calls;       /* that can fail */
    uint64_t crash_at;    /* dies at this call; 0: never */
    int crash_kills;      /* the process alone, else the power goes */
    uint32_t fail_ops;    /* bits: which calls the next lines are about */
    uint64_t fail_calls;  /* of them so far */
    uint64_t fail_at;     /* the first that fails; 0: none */
    int fail_on;          /* and all later ones */
    int fail_how;
    uint64_t failed;      /* failures given */
    uint64_t accepts, sends, recvs; /* bytes do not count: calls that moved something */
};

struct fake {
    uint64_t now_us;
    uint64_t rng;
    uint64_t hash; /* over everything that happened */
    uint64_t moved; /* grows whenever anything moves */
    uint64_t quiet_turns; /* turns since then at the same time */
    uint64_t spins;
    int trace;
    int misused; /* a closed or foreign handle was used */
    fake_host *host[FAKE_HOSTS];
    int hosts;
    fake_conn **conn;
    size_t conns, conns_cap, conns_first; /* all before the first are over */
    fake_handle *handle;
    size_t handles, handles_cap, handles_first;
    fake_wire wire; /* of the next connection */
    void (*on_connect)(void *user, fake_conn *c);
    /* One turn of everybody who has something to do; 1: somebody had. *next_us: earliest timer. */
    int (*turn)(void *user, uint64_t *next_us);
    void *user;
};

/* ---- chance and trace ---- */

FAKE_FN uint64_t fake_rand64(uint64_t *s) { /* splitmix64 */
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
FAKE_FN uint64_t fake_below(fake *w, uint64_t n) { return n == 0 ? 0 : fake_rand64(&w->rng) % n; }
FAKE_FN int fake_chance(fake *w, unsigned percent) { return fake_below(w, 100) < percent; }

FAKE_FN void fake_note(fake *w, const char *what, uint64_t a, uint64_t b) {
    const char *p;
    int i;
    for (p = what; *p != 0; p++) w->hash = (w->hash ^ (uint8_t)*p) * 0x100000001b3u;
    for (i = 0; i < 64; i += 8) w->hash = (w->hash ^ (uint8_t)(a >> i)) * 0x100000001b3u;
    for (i = 0; i < 64; i += 8) w->hash = (w->hash ^ (uint8_t)(b >> i)) * 0x100000001b3u;
    w->hash = (w->hash ^ w->now_us) * 0x100000001b3u;
    if (w->trace) {
        printf("%12llu %-10s %lld %lld\n", (unsigned long long)w->now_us, what, (long long)a,
               (long long)b);
    }
}

FAKE_FN void fake_bad(fake *w, const char *what) {
    w->misused++;
    printf("fake: %s\n", what);
}

/* ---- the world ---- */

FAKE_FN void fake_wire_plain(fake_wire *v) {
    memset(v, 0, sizeof *v);
    v->window = 65536;
    v->delay_min_us = v->delay_max_us = 20;
    v->cut[0].at = v->cut[1].at = FAKE_NEVER;
}

FAKE_FN void fake_init(fake *w, uint64_t seed) {
    memset(w, 0, sizeof *w);
    w->rng = seed;
    w->now_us = 1000000000u;
    w->hash = 0xcbf29ce484222325u;
    w->trace = getenv("SIM_TRACE") != NULL;
    fake_wire_plain(&w->wire);
}

FAKE_FN intptr_t fake_handle_new(fake_host *h, int kind, int index, int side) {
    fake *w = h->world;
    fake_handle *e;
    if (w->handles == w->handles_cap) {
        w->handles_cap = w->handles_cap == 0 ? 256 : w->handles_cap * 2;
        w->handle = (fake_handle *)realloc(w->handle, w->handles_cap * sizeof *w->handle);
        if (w->handle == NULL) abort();
    }
    e = &w->handle[w->handles];
    memset(e, 0, sizeof *e);
    e->kind = kind;
    e->host = h;
    e->index = index;
    e->side = side;
    h->open_handles++;
    return (intptr_t)w->handles++ + 10; /* never used again: a stale handle is noticed */
}

FAKE_FN fake_handle *fake_handle_of(fake_host *h, intptr_t handle, int kind) {
    fake *w = h->world;
    fake_handle *e;
    if (handle < 10 || (size_t)(handle - 10) >= w->handles) {
        fake_bad(w, "a handle that never was");
        return NULL;
    }
    e = &w->handle[handle - 10];
    if (e->host != h || e->kind != kind) {
        if (!h->dead) fake_bad(w, "a closed or foreign handle");
        return NULL;
    }
    return e;
}

/* ---- disk ---- */

FAKE_FN void fake_grow(uint8_t **p, uint64_t *cap, uint64_t size) {
    uint64_t want = *cap == 0 ? 8192 : *cap;
    if (size <= *cap) return;
    while (want < size) want *= 2;
    *p = (uint8_t *)realloc(*p, want);
    if (*p == NULL) abort();
    memset(*p + *cap, 0, want - *cap);
    *cap = want;
}

FAKE_FN fake_dirty *fake_dirty_new(fake_file *f) {
    if (f->dirty_count == f->dirty_cap) {
        f->dirty_cap = f->dirty_cap == 0 ? 64 : f->dirty_cap * 2;
        f->dirty = (fake_dirty *)realloc(f->dirty, f->dirty_cap * sizeof *f->dirty);
        if (f->dirty == NULL) abort();
    }
    memset(&f->dirty[f->dirty_count], 0, sizeof f->dirty[0]);
    return &f->dirty[f->dirty_count++];
}

/* Notes the images of the sectors that [at, at + len) touches. */
FAKE_FN void fake_dirty_range(fake_host *h, fake_file *f, uint64_t at, uint64_t len) {
    uint64_t s = at / h->sector * h->sector;
    for (; s < at + len; s += h->sector) {
        fake_dirty *d = fake_dirty_new(f);
        d->at = s;
        d->len = h->sector;
        d->image = (uint8_t *)malloc(h->sector);
        if (d->image == NULL) abort();
        fake_grow(&f->cache, &f->cap, s + h->sector);
        memcpy(d->image, f->cache + s, h->sector);
    }
}

FAKE_FN void fake_dirty_size(fake_file *f) { fake_dirty_new(f)->size = f->size; }

FAKE_FN void fake_dirty_apply(fake_file *f, const fake_dirty *d) {
    if (d->image == NULL) {
        if (d->size < f->disk_size) memset(f->disk + d->size, 0, f->disk_size - d->size);
        fake_grow(&f->disk, &f->disk_cap, d->size);
        f->disk_size = d->size;
        return;
    }
    fake_grow(&f->disk, &f->disk_cap, d->at + d->len);
    memcpy(f->disk + d->at, d->image, d->len);
}

enum { FAKE_KEEP_ALL, FAKE_KEEP_NONE, FAKE_KEEP_FIRST, FAKE_KEEP_ANY };

/* What becomes of the unsynced changes; all are forgotten. */
FAKE_FN void fake_settle(fake *w, fake_file *f, int how) {
    size_t i, keep = f->dirty_count;
    if (how == FAKE_KEEP_NONE) keep = 0;
    if (how == FAKE_KEEP_FIRST) keep = fake_below(w, f->dirty_count + 1);
    for (i = 0; i < f->dirty_count; i++) {
        int yes = how == FAKE_KEEP_ANY ? fake_chance(w, 50) : i < keep;
        if (yes) fake_dirty_apply(f, &f->dirty[i]);
        free(f->dirty[i].image);
    }
    f->dirty_count = 0;
    /* beyond the end nothing is stored */
    if (f->disk_cap > f->disk_size) memset(f->disk + f->disk_size, 0, f->disk_cap - f->disk_size);
}

FAKE_FN fake_file *fake_named(fake_host *h, const char *name) {
    int i;
    for (i = 0; i < FAKE_FILES; i++) {
        if (h->file[i].used && h->file[i].named && strcmp(h->file[i].name, name) == 0) {
            return &h->file[i];
        }
    }
    return NULL;
}

FAKE_FN void fake_file_free(fake_file *f) {
    size_t i;
    for (i = 0; i < f->dirty_count; i++) free(f->dirty[i].image);
    free(f->dirty);
    free(f->cache);
    free(f->disk);
    memset(f, 0, sizeof *f);
}

FAKE_FN fake_file *fake_file_new(fake_host *h, const char *name) {
    int i;
    for (i = 0; i < FAKE_FILES; i++) {
        fake_file *f = &h->file[i];
        if (f->used && (f->named || f->named_disk)) continue;
        fake_file_free(f);
        f->used = 1;
        f->named = 1;
        snprintf(f->name, sizeof f->name, "%s", name);
        return f;
    }
    abort();
}

FAKE_FN void fake_name_note(fake_host *h, int file, const char *name, const char *old) {
    fake_name *n;
    if (h->names_count == h->names_cap) {
        h->names_cap = h->names_cap == 0 ? 16 : h->names_cap * 2;
        h->names = (fake_name *)realloc(h->names, h->names_cap * sizeof *h->names);
        if (h->names == NULL) abort();
    }
    n = &h->names[h->names_count++];
    n->file = file;
    snprintf(n->name, sizeof n->name, "%s", name);
    snprintf(n->old, sizeof n->old, "%s", old);
}

FAKE_FN void fake_names_apply(fake_host *h, size_t count) {
    size_t i;
    int k;
    for (i = 0; i < count; i++) {
        const fake_name *n = &h->names[i];
        for (k = 0; k < FAKE_FILES; k++) {
            if (h->file[k].named_disk && strcmp(h->file[k].name_disk, n->name) == 0) {
                h->file[k].named_disk = 0;
            }
        }
        if (n->file >= 0) {
            h->file[n->file].named_disk = 1;
            snprintf(h->file[n->file].name_disk, 64, "%s", n->name);
        }
    }
    h->names_count = 0;
}

/* A file as the test wants it, on the platter. */
FAKE_FN void fake_put_file(fake_host *h, const char *name, const void *data, size_t len) {
    fake_file *f = fake_named(h, name);
    if (f == NULL) f = fake_file_new(h, name);
    f->size = 0;
    fake_grow(&f->cache, &f->cap, len);
    memcpy(f->cache, data, len);
    f->size = len;
    f->named_disk = 1;
    snprintf(f->name_disk, 64, "%s", name);
    fake_grow(&f->disk, &f->disk_cap, len);
    memcpy(f->disk, data, len);
    f->disk_size = len;
}

/* ---- crash ---- */

FAKE_FN void fake_conn_reset(fake_conn *c) { c->reset = 1; }

/* All handles go, as at the end of a process. */
FAKE_FN void fake_drop_handles(fake_host *h, int silent) {
    fake *w = h->world;
    size_t i;
    for (i = w->handles_first; i < w->handles; i++) {
        fake_handle *e = &w->handle[i];
        if (e->host != h || e->kind == FAKE_FREE) continue;
        if (e->kind == FAKE_SOCK) {
            fake_conn *c = w->conn[e->index];
            c->open[e->side] = 0;
            if (silent) c->gone[e->side] = 1;
            if (!silent) fake_conn_reset(c);
        }
        if (e->kind == FAKE_FILE) h->file[e->index].locked = 0;
        e->kind = FAKE_FREE;
    }
    for (i = w->conns_first; i < w->conns; i++) { /* waiting in a backlog */
        fake_conn *c = w->conn[i];
        if (c->used && c->host[1] == h && !c->accepted) {
            if (silent) c->gone[1] = 1;
            if (!silent) fake_conn_reset(c);
        }
    }
    h->open_handles = 0;
    h->dead = 1;
    h->silent_death = silent;
    w->moved++;
}

/* The process ends; what it wrote stays in the cache. */
FAKE_FN void fake_kill(fake_host *h) {
    fake_note(h->world, "kill", (uint64_t)h->ip.ip[3], 0);
    fake_drop_handles(h, 0);
}

/* The power goes; peers see silence or, as if the host were back at once, a reset. */
FAKE_FN void fake_power_cut(fake_host *h, int silent) {
    fake *w = h->world;
    int how = (int)fake_below(w, 4), i;
    size_t keep = h->names_count;
    fake_note(w, "power", (uint64_t)h->ip.ip[3], (uint64_t)how);
    fake_drop_handles(h, silent);
    if (how == FAKE_KEEP_NONE) keep = 0;
    if (how >= FAKE_KEEP_FIRST) keep = fake_below(w, keep + 1);
    fake_names_apply(h, keep);
    for (i = 0; i < FAKE_FILES; i++) {
        fake_file *f = &h->file[i];
        if (!f->used) continue;
        fake_settle(w, f, how);
        if (!f->named_disk) {
            fake_file_free(f);
            continue;
        }
        f->named = 1;
        memcpy(f->name, f->name_disk, 64);
        fake_grow(&f->cache, &f->cap, f->disk_size);
        if (f->disk_size > 0) memcpy(f->cache, f->disk, f->disk_size);
        if (f->cap > f->disk_size) memset(f->cache + f->disk_size, 0, f->cap - f->disk_size);
        f->size = f->disk_size;
        f->locked = 0;
    }
}

/* The host is up again: whoever still writes to its old connections learns that they are over. */
FAKE_FN void fake_boot(fake_host *h) {
    fake *w = h->world;
    size_t i;
    h->dead = 0;
    for (i = w->conns_first; i < w->conns; i++) {
        fake_conn *c = w->conn[i];
        int side;
        for (side = 0; side < 2; side++) {
            if (c->used && c->host[side] == h && c->gone[side]) c->gone[side] = 2;
        }
    }
    h->crash_at = 0;
    h->fail_at = 0;
}

/* Counts a call; 1: it fails. */
FAKE_FN int fake_fault(fake_host *h, int op) {
    h->calls++;
    if (h->dead) return 1;
    if (h->crash_at != 0 && h->calls >= h->crash_at) {
        h->crash_at = 0;
        if (h->crash_kills) {
            fake_kill(h);
        } else {
            fake_power_cut(h, (int)fake_below(h->world, 2));
        }
        return 1;
    }
    if ((h->fail_ops >> op) & 1u) {
        h->fail_calls++;
        if (h->fail_at != 0 &&
            (h->fail_calls == h->fail_at || (h->fail_on && h->fail_calls > h->fail_at))) {
            h->failed++;
            fake_note(h->world, "fault", (uint64_t)op, h->fail_calls);
            return 1;
        }
    }
    return 0;
}

FAKE_FN void fake_arm(fake_host *h, uint32_t ops, uint64_t at, int on, int how) {
    h->fail_ops = ops;
    h->fail_calls = 0;
    h->fail_at = at;
    h->fail_on = on;
    h->fail_how = how;
    h->failed = 0;
}

/* ---- platform: clock, files ---- */

FAKE_FN uint64_t fake_now_us(void *user) { return ((fake_host *)user)->world->now_us++; }
FAKE_FN int64_t fake_wall_s(void *user) {
    fake_host *h = (fake_host *)user;
    return h->no_clock ? 0 : 1700000000 + (int64_t)(h->world->now_us / 1000000u);
}
FAKE_FN opcomms_err fake_random(void *user, void *out, size_t len) {
    fake_host *h = (fake_host *)user;
    uint8_t *p = (uint8_t *)out;
    if (fake_fault(h, FAKE_RANDOM)) return OPCOMMS_E_RANDOM;
    while (len-- > 0) *p++ = (uint8_t)fake_rand64(&h->world->rng);
    return OPCOMMS_OK;
}
FAKE_FN opcomms_err fake_dir_open(void *user, const char *path, intptr_t *dir, int *os) {
    fake_host *h = (fake_host *)user;
    *os = EIO;
    if (fake_fault(h, FAKE_DIR_OPEN)) return OPCOMMS_E_IO;
    if (strcmp(path, ".") != 0) return OPCOMMS_E_NOT_FOUND;
    *os = 0;
    *dir = fake_handle_new(h, FAKE_DIR, 0, 0);
    return OPCOMMS_OK;
}
FAKE_FN opcomms_err fake_dir_sync(void *user, intptr_t dir, int *os) {
    fake_host *h = (fake_host *)user;
    *os = EIO;
    if (fake_fault(h, FAKE_DIR_SYNC)) return OPCOMMS_E_IO;
    if (fake_handle_of(h, dir, FAKE_DIR) == NULL) return OPCOMMS_E_IO;
    fake_names_apply(h, h->names_count);
    *os = 0;
    return OPCOMMS_OK;
}
FAKE_FN void fake_close_any(void *user, intptr_t handle, int kind) {
    fake_host *h = (fake_host *)user;
    fake_handle *e;
    if (h->dead) return;
    e = fake_handle_of(h, handle, kind);
    if (e == NULL) return;
    if (kind == FAKE_FILE && h->file[e->index].locked == handle) h->file[e->index].locked = 0;
    e->kind = FAKE_FREE;
    h->open_handles--;
}
FAKE_FN void fake_dir_close(void *user, intptr_t dir) { fake_close_any(user, dir, FAKE_DIR); }
FAKE_FN void fake_file_close(void *user, intptr_t file) { fake_close_any(user, file, FAKE_FILE); }
FAKE_FN opcomms_err fake_file_open(void *user, intptr_t dir, const char *name, uint32_t mode,
                                  intptr_t *file, int *os) {
    fake_host *h = (fake_host *)user;
    fake_file *f;
    *os = EIO;
    if (fake_fault(h, FAKE_OPEN) || fake_handle_of(h, dir, FAKE_DIR) == NULL) return OPCOMMS_E_IO;
    f = fake_named(h, name);
    *os = 0;
    if (f != NULL && (mode & OPCOMMS_FILE_EXCLUSIVE)) return OPCOMMS_E_IN_USE;
    if (f == NULL && !(mode & OPCOMMS_FILE_CREATE)) return OPCOMMS_E_NOT_FOUND;
    if (f == NULL) {
        f = fake_file_new(h, name);
        fake_name_note(h, (int)(f - h->file), name, "");
    }
    *file = fake_handle_new(h, FAKE_FILE, (int)(f - h->file), 0);
    return OPCOMMS_OK;
}
FAKE_FN opcomms_err fake_file_lock(void *user, intptr_t file, int *os) {
    fake_host *h = (fake_host *)user;
    fake_handle *e;
    *os = EIO;
    if (fake_fault(h, FAKE_LOCK)) return OPCOMMS_E_IO;
    e = fake_handle_of(h, file, FAKE_FILE);
    if (e == NULL) return OPCOMMS_E_IO;
    *os = EAGAIN;
    if (h->file[e->index].locked != 0) return OPCOMMS_E_IN_USE;
    *os = 0;
    h->file[e->index].locked = file;
    return OPCOMMS_OK;
}
FAKE_FN opcomms_err fake_file_size(void *user, intptr_t file, uint64_t *bytes, int *os) {
    fake_host *h = (fake_host *)user;
    fake_handle *e;
    *os = EIO;
    if (fake_fault(h, FAKE_SIZE)) return OPCOMMS_E_IO;
    e = fake_handle_of(h, file, FAKE_FILE);
    if (e == NULL) return OPCOMMS_E_IO;
    *os = 0;
    *bytes = h->file[e->index].size;
    return OPCOMMS_OK;
}
FAKE_FN opcomms_err fake_file_read(void *user, intptr_t file, uint64_t offset, void *buf,
                                   size_t len, size_t *got, int *os) {
    fake_host *h = (fake_host *)user;
    fake_handle *e;
    fake_file *f;
    int fault = fake_fault(h, FAKE_READ);
    *os = EIO;
    if (h->dead || (fault && h->fail_how != FAKE_SHORT)) return OPCOMMS_E_IO;
    e = fake_handle_of(h, file, FAKE_FILE);
    if (e == NULL) return OPCOMMS_E_IO;
    f = &h->file[e->index];
    *os = 0;
    *got = 0;
    if (offset >= f->size) return OPCOMMS_OK;
    if (len > f->size - offset) len = (size_t)(f->size - offset);
    if (fault && len > 1) len = 1;
    memcpy(buf, f->cache + offset, len);
    *got = len;
    return OPCOMMS_OK;
}
FAKE_FN opcomms_err fake_file_write(void *user, intptr_t file, uint64_t offset, const void *buf,
                                   size_t len, size_t *put, int *os) {
    fake_host *h = (fake_host *)user;
    fake_handle *e;
    fake_file *f;
    int fault = fake_fault(h, FAKE_WRITE);
    *os = h->fail_how == FAKE_NO_SPACE ? ENOSPC : EIO;
    if (h->dead || (fault && h->fail_how == FAKE_ERROR)) return OPCOMMS_E_IO;
    e = fake_handle_of(h, file, FAKE_FILE);
    if (e == NULL) return OPCOMMS_E_IO;
    if (fault && h->fail_how == FAKE_SHORT && len > 1) len = 1;
    if (fault && h->fail_how == FAKE_NO_SPACE) { /* some fits, then nothing more */
        size_t some = len / 2;
        h->fail_how = FAKE_ERROR;
        h->fail_on = 1;
        if (some == 0) return OPCOMMS_E_IO;
        len = some;
    }
    f = &h->file[e->index];
    fake_grow(&f->cache, &f->cap, offset + len);
    memcpy(f->cache + offset, buf, len);
    fake_dirty_range(h, f, offset, len);
    if (offset + len > f->size) f->size = offset + len;
    if (offset + len > f->disk_size) fake_dirty_size(f);
    fake_note(h->world, "write", offset, len);
    *put = len;
    *os = 0;
    h->world->moved++;
    return OPCOMMS_OK;
}
FAKE_FN opcomms_err fake_file_truncate(void *user, intptr_t file, uint64_t bytes, int *os) {
    fake_host *h = (fake_host *)user;
    fake_handle *e;
    fake_file *f;
    *os = EIO;
    if (fake_fault(h, FAKE_TRUNCATE)) return OPCOMMS_E_IO;
    e = fake_handle_of(h, file, FAKE_FILE);
    if (e == NULL) return OPCOMMS_E_IO;
    f = &h->file[e->index];
    fake_grow(&f->cache, &f->cap, bytes);
    if (bytes < f->size) memset(f->cache + bytes, 0, f->size - bytes);
    f->size = bytes;
    fake_dirty_size(f);
    *os = 0;
    return OPCOMMS_OK;
}
FAKE_FN opcomms_err fake_file_sync(void *user, intptr_t file, int *os) {
    fake_host *h = (fake_host *)user;
    fake_handle *e;
    *os = EIO;
    if (fake_fault(h, FAKE_SYNC)) {
        if (h->dead) return OPCOMMS_E_IO;
        e = fake_handle_of(h, file, FAKE_FILE);
        if (e != NULL) fake_settle(h->world, &h->file[e->index], FAKE_KEEP_ANY);
        return OPCOMMS_E_IO;
    }
    e = fake_handle_of(h, file, FAKE_FILE);
    if (e == NULL) return OPCOMMS_E_IO;
    fake_settle(h->world, &h->file[e->index], FAKE_KEEP_ALL);
    h->syncs++;
    fake_note(h->world, "sync", (uint64_t)e->index, h->syncs);
    *os = 0;
    h->world->moved++;
    return OPCOMMS_OK;
}
FAKE_FN opcomms_err fake_file_rename(void *user, intptr_t dir, const char *from, const char *to,
                                    int *os) {
    fake_host *h = (fake_host *)user;
    fake_file *f, *old;
    *os = EIO;
    if (fake_fault(h, FAKE_RENAME) || fake_handle_of(h, dir, FAKE_DIR) == NULL) return OPCOMMS_E_IO;
    *os = 0;
    f = fake_named(h, from);
    if (f == NULL) return OPCOMMS_E_NOT_FOUND;
    old = fake_named(h, to);
    if (old != NULL && old != f) old->named = 0;
    snprintf(f->name, sizeof f->name, "%s", to);
    fake_name_note(h, (int)(f - h->file), to, from);
    return OPCOMMS_OK;
}
FAKE_FN opcomms_err fake_file_remove(void *user, intptr_t dir, const char *name, int *os) {
    fake_host *h = (fake_host *)user;
    fake_file *f;
    *os = EIO;
    if (fake_fault(h, FAKE_REMOVE) || fake_handle_of(h, dir, FAKE_DIR) == NULL) return OPCOMMS_E_IO;
    *os = 0;
    f = fake_named(h, name);
    if (f == NULL) return OPCOMMS_E_NOT_FOUND;
    f->named = 0;
    fake_name_note(h, -1, name, "");
    return OPCOMMS_OK;
}

/* ---- wire ---- */

FAKE_FN int fake_same_ip(const opcomms_address *a, const opcomms_address *b) {
    return a->family == b->family && memcmp(a->ip, b->ip, a->family == 6 ? 16 : 4) == 0;
}

FAKE_FN fake_host *fake_host_at(fake *w, const opcomms_address *a) {
    int i;
    for (i = 0; i < w->hosts; i++) {
        if (fake_same_ip(&w->host[i]->ip, a)) return w->host[i];
    }
    return NULL;
}

FAKE_FN fake_handle *fake_listener_of(fake *w, fake_host *h, uint16_t port) {
    size_t i;
    while (w->handles_first < w->handles && w->handle[w->handles_first].kind == FAKE_FREE) {
        w->handles_first++;
    }
    for (i = w->handles_first; i < w->handles; i++) {
        if (w->handle[i].kind == FAKE_LISTENER && w->handle[i].host == h &&
            w->handle[i].address.port == port) {
            return &w->handle[i];
        }
    }
    return NULL;
}

FAKE_FN opcomms_err fake_tcp_listen(void *user, const opcomms_address *address, intptr_t *sock,
                                   opcomms_address *bound, int *os) {
    fake_host *h = (fake_host *)user;
    uint16_t port = address->port != 0 ? address->port : 40000;
    *os = EIO;
    if (fake_fault(h, FAKE_LISTEN)) return OPCOMMS_E_IO;
    *os = EADDRINUSE;
    if (fake_listener_of(h->world, h, port) != NULL) {
        if (address->port != 0) return OPCOMMS_E_IN_USE;
        while (fake_listener_of(h->world, h, port) != NULL) port++;
    }
    *os = 0;
    *sock = fake_handle_new(h, FAKE_LISTENER, 0, 0);
    *bound = h->ip;
    bound->port = port;
    h->world->handle[*sock - 10].address = *bound;
    return OPCOMMS_OK;
}

/* Bytes of a pipe that have arrived by now. */
FAKE_FN size_t fake_arrived(const fake *w, const fake_pipe *p) {
    size_t i, n = 0;
    for (i = 0; i < p->chunks; i++) {
        if (p->chunk[p->chunk_head + i].at_us > w->now_us) break;
        n += p->chunk[p->chunk_head + i].len;
    }
    return n;
}

FAKE_FN void fake_cut_now(fake_conn *c, int d) {
    fake_pipe *p = &c->pipe[d];
    if (p->swallow) return;
    p->swallow = 1;
    if (c->wire.cut[d].how == FAKE_RESET) fake_conn_reset(c);
    if (c->wire.cut[d].how == FAKE_FIN) p->fin = 1;
}

FAKE_FN fake_conn *fake_conn_new(fake *w) {
    fake_conn *c = (fake_conn *)calloc(1, sizeof *c);
    if (c == NULL) abort();
    if (w->conns == w->conns_cap) {
        w->conns_cap = w->conns_cap == 0 ? 64 : w->conns_cap * 2;
        w->conn = (fake_conn **)realloc(w->conn, w->conns_cap * sizeof *w->conn);
        if (w->conn == NULL) abort();
    }
    w->conn[w->conns++] = c;
    c->used = 1;
    return c;
}

/* Both ends are closed and nothing waits for acceptance: the connection is history. */
FAKE_FN void fake_conn_done(fake *w, fake_conn *c) {
    int d;
    if (c->open[0] || c->open[1]) return;
    if (!c->accepted && c->up_us != FAKE_NEVER && !c->reset && !c->refused && !c->gone[1]) return;
    for (d = 0; d < 2; d++) {
        free(c->pipe[d].p);
        free(c->pipe[d].chunk);
        c->pipe[d].p = NULL;
        c->pipe[d].chunk = NULL;
        c->pipe[d].len = c->pipe[d].cap = c->pipe[d].chunks = c->pipe[d].chunks_cap = 0;
        c->pipe[d].chunk_head = c->pipe[d].head = 0;
    }
    c->used = 0;
    while (w->conns_first < w->conns && !w->conn[w->conns_first]->used) w->conns_first++;
}

FAKE_FN opcomms_err fake_tcp_connect(void *user, const opcomms_address *address, intptr_t *sock,
                                    int *os) {
    fake_host *h = (fake_host *)user;
    fake *w = h->world;
    fake_host *to = fake_host_at(w, address);
    fake_conn *c;
    *os = ENETUNREACH;
    if (fake_fault(h, FAKE_CONNECT)) return OPCOMMS_E_CONNECT;
    *os = 0;
    c = fake_conn_new(w);
    c->host[0] = h;
    c->host[1] = to;
    c->addr[0] = h->ip;
    c->addr[0].port = (uint16_t)(50000u + w->conns % 10000u);
    c->addr[1] = *address;
    c->open[0] = 1;
    c->wire = w->wire;
    c->up_us = w->now_us + c->wire.delay_min_us;
    if (w->on_connect != NULL) w->on_connect(w->user, c);
    if (to == NULL || to->blackhole || (to->dead && to->silent_death)) {
        c->up_us = FAKE_NEVER;
    } else if (to->dead || fake_listener_of(w, to, address->port) == NULL) {
        c->refused = 1;
    }
    *sock = fake_handle_new(h, FAKE_SOCK, (int)w->conns - 1, 0);
    fake_note(w, "connect", (uint64_t)h->ip.ip[3], address->ip[3]);
    w->moved++;
    return OPCOMMS_OK;
}

FAKE_FN opcomms_err fake_tcp_connected(void *user, intptr_t sock, int *os) {
    fake_host *h = (fake_host *)user;
    fake_handle *e;
    fake_conn *c;
    *os = ECONNREFUSED;
    if (fake_fault(h, FAKE_CONNECTED)) return OPCOMMS_E_CONNECT;
    e = fake_handle_of(h, sock, FAKE_SOCK);
    if (e == NULL) return OPCOMMS_E_CONNECT;
    c = h->world->conn[e->index];
    if (c->refused || c->reset) return OPCOMMS_E_CONNECT;
    *os = 0;
    return OPCOMMS_OK;
}

FAKE_FN int fake_waits_at(const fake *w, const fake_handle *l, const fake_conn *c) {
    return c->used && !c->accepted && !c->refused && c->host[1] == l->host &&
           c->addr[1].port == l->address.port && c->up_us <= w->now_us && c->gone[1] == 0;
}

FAKE_FN opcomms_err fake_tcp_accept(void *user, intptr_t listener, intptr_t *sock,
                                   opcomms_address *peer, int *os) {
    fake_host *h = (fake_host *)user;
    fake *w = h->world;
    fake_handle *l;
    size_t i;
    *os = EMFILE;
    if (fake_fault(h, FAKE_ACCEPT)) return OPCOMMS_E_IO;
    l = fake_handle_of(h, listener, FAKE_LISTENER);
    if (l == NULL) return OPCOMMS_E_IO;
    *os = 0;
    for (i = w->conns_first; i < w->conns && !h->mute; i++) {
        fake_conn *c = w->conn[i];
        if (!fake_waits_at(w, l, c)) continue;
        c->accepted = 1;
        c->open[1] = 1;
        *peer = c->addr[0];
        *sock = fake_handle_new(h, FAKE_SOCK, (int)i, 1);
        h->accepts++;
        w->moved++;
        fake_note(w, "accept", (uint64_t)h->ip.ip[3], i);
        return OPCOMMS_OK;
    }
    return OPCOMMS_E_AGAIN;
}

FAKE_FN size_t fake_piece(fake *w, const fake_wire *v, size_t n) {
    size_t most = v->piece_max;
    if (most == 0) return n;
    if (v->random) most = 1 + (size_t)fake_below(w, most);
    return n < most ? n : most;
}

FAKE_FN opcomms_err fake_sock_recv(void *user, intptr_t sock, void *buf, size_t len, size_t *got,
                                  int *os) {
    fake_host *h = (fake_host *)user;
    fake *w = h->world;
    fake_handle *e;
    fake_conn *c;
    fake_pipe *p;
    size_t n;
    *os = ECONNRESET;
    if (fake_fault(h, FAKE_RECV)) return OPCOMMS_E_CLOSED;
    e = fake_handle_of(h, sock, FAKE_SOCK);
    if (e == NULL) return OPCOMMS_E_CLOSED;
    c = w->conn[e->index];
    p = &c->pipe[1 - e->side];
    n = fake_arrived(w, p);
    if (n > len) n = len;
    if (n > 0) {
        size_t left;
        n = fake_piece(w, &c->wire, n);
        memcpy(buf, p->p + p->head, n);
        p->head += n;
        p->len -= n;
        p->given += n;
        for (left = n; left > 0;) {
            fake_chunk *k = &p->chunk[p->chunk_head];
            size_t some = k->len < left ? k->len : left;
            k->len -= some;
            left -= some;
            if (k->len == 0) {
                p->chunk_head++;
                p->chunks--;
            }
        }
        if (p->len == 0) p->head = 0;
        if (p->chunks == 0) p->chunk_head = 0;
        h->recvs++;
        w->moved++;
        *got = n;
        *os = 0;
        fake_note(w, "recv", (uint64_t)h->ip.ip[3], n);
        return OPCOMMS_OK;
    }
    if (c->reset) return OPCOMMS_E_CLOSED;
    *os = 0;
    if (p->fin && p->len == 0 && c->up_us <= w->now_us) {
        *got = 0;
        return OPCOMMS_OK;
    }
    return OPCOMMS_E_AGAIN;
}

FAKE_FN void fake_pipe_put(fake *w, fake_conn *c, int d, const void *buf, size_t n) {
    fake_pipe *p = &c->pipe[d];
    uint64_t span = c->wire.delay_max_us - c->wire.delay_min_us;
    uint64_t at = w->now_us + c->wire.delay_min_us + (span > 0 ? fake_below(w, span + 1) : 0);
    if (at < p->last_us) at = p->last_us;
    p->last_us = at;
    if (p->head + p->len + n > p->cap) {
        size_t cap = (p->len + n) * 2 + 1024;
        uint8_t *q = (uint8_t *)malloc(cap);
        if (q == NULL) abort();
        if (p->len > 0) memcpy(q, p->p + p->head, p->len);
        free(p->p);
        p->p = q;
        p->cap = cap;
        p->head = 0;
    }
    memcpy(p->p + p->head + p->len, buf, n);
    p->len += n;
    if (p->chunk_head + p->chunks == p->chunks_cap) {
        size_t cap = p->chunks * 2 + 32;
        fake_chunk *q = (fake_chunk *)malloc(cap * sizeof *q);
        if (q == NULL) abort();
        if (p->chunks > 0) memcpy(q, p->chunk + p->chunk_head, p->chunks * sizeof *q);
        free(p->chunk);
        p->chunk = q;
        p->chunks_cap = cap;
        p->chunk_head = 0;
    }
    p->chunk[p->chunk_head + p->chunks].at_us = at;
    p->chunk[p->chunk_head + p->chunks].len = n;
    p->chunks++;
}

FAKE_FN opcomms_err fake_sock_send(void *user, intptr_t sock, const void *buf, size_t len,
                                  size_t *put, int *os) {
    fake_host *h = (fake_host *)user;
    fake *w = h->world;
    fake_handle *e;
    fake_conn *c;
    fake_pipe *p;
    int d;
    *os = EPIPE;
    if (fake_fault(h, FAKE_SEND)) return OPCOMMS_E_CLOSED;
    e = fake_handle_of(h, sock, FAKE_SOCK);
    if (e == NULL) return OPCOMMS_E_CLOSED;
    c = w->conn[e->index];
    d = e->side;
    p = &c->pipe[d];
    if (c->gone[1 - d] == 2) fake_conn_reset(c); /* the host is back and knows nothing of this */
    if (p->sent >= c->wire.cut[d].at) fake_cut_now(c, d);
    if (c->reset || (p->fin && !p->swallow)) return OPCOMMS_E_CLOSED;
    *os = 0;
    if (c->gone[1 - d]) { /* silence: the window fills up and that is all */
        if (p->len >= c->wire.window) return OPCOMMS_E_AGAIN;
        fake_pipe_put(w, c, d, buf, len);
        *put = len;
        w->moved++;
        return OPCOMMS_OK;
    }
    if (c->accepted && !c->open[1 - d]) { /* the first write after the end is still taken */
        fake_conn_reset(c);
        *put = len;
        w->moved++;
        return OPCOMMS_OK;
    }
    if (p->swallow) {
        if (c->wire.cut[d].how == FAKE_STALL) {
            p->sent += len;
            if (p->sent > c->wire.cut[d].at + c->wire.window) return OPCOMMS_E_AGAIN;
        }
        *put = len;
        w->moved++;
        return OPCOMMS_OK;
    }
    if (p->len >= c->wire.window) return OPCOMMS_E_AGAIN;
    if (len > c->wire.window - p->len) len = c->wire.window - p->len;
    len = fake_piece(w, &c->wire, len);
    if (len > c->wire.cut[d].at - p->sent) len = (size_t)(c->wire.cut[d].at - p->sent);
    fake_pipe_put(w, c, d, buf, len);
    p->sent += len;
    if (p->sent >= c->wire.cut[d].at && c->wire.cut[d].how != FAKE_STALL) fake_cut_now(c, d);
    h->sends++;
    w->moved++;
    *put = len;
    fake_note(w, "send", (uint64_t)h->ip.ip[3], len);
    return OPCOMMS_OK;
}

FAKE_FN void fake_sock_shutdown(void *user, intptr_t sock, int both) {
    fake_host *h = (fake_host *)user;
    fake_handle *e = h->dead ? NULL : fake_handle_of(h, sock, FAKE_SOCK);
    fake_conn *c;
    if (e == NULL) return;
    c = h->world->conn[e->index];
    if (!c->pipe[e->side].swallow) c->pipe[e->side].fin = 1;
    if (both) c->pipe[1 - e->side].fin = 1;
    h->world->moved++;
}

FAKE_FN void fake_sock_close(void *user, intptr_t sock) {
    fake_host *h = (fake_host *)user;
    fake *w = h->world;
    fake_handle *e;
    size_t i;
    if (h->dead) return;
    if (sock >= 10 && (size_t)(sock - 10) < w->handles &&
        w->handle[sock - 10].kind == FAKE_LISTENER) {
        fake_handle *l = &w->handle[sock - 10];
        for (i = w->conns_first; i < w->conns; i++) {
            if (w->conn[i]->used && !w->conn[i]->accepted && w->conn[i]->host[1] == h &&
                w->conn[i]->addr[1].port == l->address.port) {
                fake_conn_reset(w->conn[i]);
            }
        }
        fake_close_any(user, sock, FAKE_LISTENER);
        return;
    }
    e = fake_handle_of(h, sock, FAKE_SOCK);
    if (e != NULL) {
        fake_conn *c = w->conn[e->index];
        fake_pipe *out = &c->pipe[e->side];
        c->open[e->side] = 0;
        if (c->pipe[1 - e->side].len > 0) { /* unread input: a reset; what is under way is lost */
            fake_conn_reset(c);
            out->len = out->head = out->chunks = out->chunk_head = 0;
        }
        if (!out->swallow) out->fin = 1;
        w->moved++;
        fake_note(w, "close", (uint64_t)h->ip.ip[3], (uint64_t)e->index);
        fake_close_any(user, sock, FAKE_SOCK);
        fake_conn_done(w, c);
    }
}

/* ---- waiting ---- */

FAKE_FN unsigned fake_events(fake_host *h, const opcomms_pollfd *fd) {
    fake *w = h->world;
    fake_handle *e;
    unsigned ev = 0;
    size_t i;
    if (fd->handle < 10 || (size_t)(fd->handle - 10) >= w->handles) return OPCOMMS_POLL_ERR;
    e = &w->handle[fd->handle - 10];
    if (e->kind == FAKE_WAKER) return e->signalled ? OPCOMMS_POLL_IN & fd->events : 0;
    if (e->kind == FAKE_LISTENER) {
        for (i = w->conns_first; i < w->conns && !h->mute; i++) {
            if (fake_waits_at(w, e, w->conn[i])) return OPCOMMS_POLL_IN & fd->events;
        }
        return 0;
    }
    if (e->kind == FAKE_SOCK) {
        fake_conn *c = w->conn[e->index];
        fake_pipe *in = &c->pipe[1 - e->side], *out = &c->pipe[e->side];
        if (c->up_us > w->now_us) return 0;
        if (fake_arrived(w, in) > 0 || c->reset || (in->fin && in->len == 0)) ev |= OPCOMMS_POLL_IN;
        if (c->reset || c->refused || c->gone[1 - e->side] == 2 || out->len < c->wire.window) {
            ev |= OPCOMMS_POLL_OUT;
        }
        if (out->swallow && c->wire.cut[e->side].how == FAKE_STALL &&
            out->sent > c->wire.cut[e->side].at + c->wire.window && !c->reset) {
            ev &= ~OPCOMMS_POLL_OUT;
        }
        ev &= fd->events;
        if (c->reset || c->refused) ev |= OPCOMMS_POLL_ERR;
        return ev;
    }
    return OPCOMMS_POLL_ERR;
}

FAKE_FN int fake_ready(fake_host *h, opcomms_pollfd *fds, size_t count) {
    size_t i;
    int any = 0;
    for (i = 0; i < count; i++) {
        fds[i].revents = (uint16_t)fake_events(h, &fds[i]);
        any += fds[i].revents != 0;
    }
    return any;
}

/* The next moment at which the wire does something by itself. */
FAKE_FN uint64_t fake_next_event(const fake *w) {
    uint64_t next = FAKE_NEVER;
    size_t i;
    int d;
    for (i = w->conns_first; i < w->conns; i++) {
        const fake_conn *c = w->conn[i];
        if (!c->used) continue;
        if (c->up_us > w->now_us && c->up_us < next) next = c->up_us;
        for (d = 0; d < 2; d++) {
            size_t k;
            for (k = 0; k < c->pipe[d].chunks; k++) {
                uint64_t at = c->pipe[d].chunk[c->pipe[d].chunk_head + k].at_us;
                if (at <= w->now_us) continue;
                if (at < next) next = at;
                break;
            }
        }
    }
    return next;
}

/* Lets the world go on until `deadline`, or until one of fds is ready. */
FAKE_FN void fake_go(fake *w, fake_host *h, opcomms_pollfd *fds, size_t count, uint64_t deadline) {
    for (;;) {
        uint64_t next = FAKE_NEVER, event, moved = w->moved;
        if (count > 0 && (h->dead || fake_ready(h, fds, count))) return;
        if (w->now_us >= deadline) return;
        if (w->turn != NULL && w->turn(w->user, &next)) {
            if (w->moved != moved) w->quiet_turns = 0;
            if (++w->quiet_turns < 3000) continue;
            w->spins++; /* somebody is busy with nothing */
            fake_note(w, "spin", w->spins, 0);
            w->quiet_turns = 0;
            w->now_us += 1000;
            continue;
        }
        w->quiet_turns = 0;
        event = fake_next_event(w);
        if (event < next) next = event;
        if (deadline < next) next = deadline;
        if (next > w->now_us) w->now_us = next;
    }
}

FAKE_FN opcomms_err fake_wait(void *user, opcomms_pollfd *fds, size_t count, int32_t timeout_ms,
                             int *os) {
    fake_host *h = (fake_host *)user;
    fake *w = h->world;
    int fault = fake_fault(h, FAKE_WAIT);
    uint64_t deadline = timeout_ms < 0 ? w->now_us + 3600000000u
                                       : w->now_us + (uint64_t)timeout_ms * 1000u;
    size_t i;
    *os = ENOMEM;
    if (h->dead && timeout_ms > 0) w->now_us = deadline; /* nothing will happen any more */
    if (fault) return OPCOMMS_E_NOMEM;
    *os = 0;
    for (i = 0; i < count; i++) fds[i].revents = 0;
    if (fake_ready(h, fds, count) || timeout_ms == 0) return OPCOMMS_OK;
    fake_go(w, h, fds, count, deadline);
    return OPCOMMS_OK;
}

FAKE_FN opcomms_err fake_wake_open(void *user, intptr_t wake[2], int *os) {
    fake_host *h = (fake_host *)user;
    *os = EMFILE;
    if (fake_fault(h, FAKE_WAKE)) return OPCOMMS_E_IO;
    *os = 0;
    wake[0] = fake_handle_new(h, FAKE_WAKER, 0, 0);
    wake[1] = wake[0];
    return OPCOMMS_OK;
}
FAKE_FN void fake_wake_signal(void *user, intptr_t wake[2]) {
    fake_host *h = (fake_host *)user;
    fake_handle *e = h->dead ? NULL : fake_handle_of(h, wake[0], FAKE_WAKER);
    if (e != NULL) e->signalled = 1;
}
FAKE_FN void fake_wake_drain(void *user, intptr_t wake[2]) {
    fake_host *h = (fake_host *)user;
    fake_handle *e = h->dead ? NULL : fake_handle_of(h, wake[0], FAKE_WAKER);
    if (e != NULL) e->signalled = 0;
}
FAKE_FN void fake_wake_close(void *user, intptr_t wake[2]) {
    fake_close_any(user, wake[0], FAKE_WAKER);
}

/* ---- hosts ---- */

/* A host at 10.0.x.y, x and y from `number`. */
FAKE_FN fake_host *fake_host_new(fake *w, unsigned number) {
    fake_host *h = (fake_host *)calloc(1, sizeof *h);
    opcomms_platform *p;
    if (h == NULL || w->hosts == FAKE_HOSTS) abort();
    p = &h->plat;
    h->world = w;
    h->ip.family = 4;
    h->ip.ip[0] = 10;
    h->ip.ip[2] = (uint8_t)(number >> 8);
    h->ip.ip[3] = (uint8_t)number;
    h->sector = 512;
    p->size = (uint32_t)sizeof *p;
    p->user = h;
    p->now_us = fake_now_us;
    p->wall_s = fake_wall_s;
    p->random = fake_random;
    p->dir_open = fake_dir_open;
    p->dir_sync = fake_dir_sync;
    p->dir_close = fake_dir_close;
    p->file_open = fake_file_open;
    p->file_lock = fake_file_lock;
    p->file_size = fake_file_size;
    p->file_read = fake_file_read;
    p->file_write = fake_file_write;
    p->file_truncate = fake_file_truncate;
    p->file_sync = fake_file_sync;
    p->file_close = fake_file_close;
    p->file_rename = fake_file_rename;
    p->file_remove = fake_file_remove;
    p->tcp_listen = fake_tcp_listen;
    p->tcp_accept = fake_tcp_accept;
    p->tcp_connect = fake_tcp_connect;
    p->tcp_connected = fake_tcp_connected;
    p->sock_recv = fake_sock_recv;
    p->sock_send = fake_sock_send;
    p->sock_shutdown = fake_sock_shutdown;
    p->sock_close = fake_sock_close;
    p->wait = fake_wait;
    p->wake_open = fake_wake_open;
    p->wake_signal = fake_wake_signal;
    p->wake_drain = fake_wake_drain;
    p->wake_close = fake_wake_close;
    w->host[w->hosts++] = h;
    return h;
}

FAKE_FN void fake_end(fake *w) {
    size_t i;
    int k, f;
    for (k = 0; k < w->hosts; k++) {
        for (f = 0; f < FAKE_FILES; f++) fake_file_free(&w->host[k]->file[f]);
        free(w->host[k]->names);
        free(w->host[k]);
    }
    for (i = 0; i < w->conns; i++) {
        free(w->conn[i]->pipe[0].p);
        free(w->conn[i]->pipe[1].p);
        free(w->conn[i]->pipe[0].chunk);
        free(w->conn[i]->pipe[1].chunk);
        free(w->conn[i]);
    }
    free(w->conn);
    free(w->handle);
    memset(w, 0, sizeof *w);
}

/* Do the bytes lie on the platter of this host's file? What a power cut at this moment would leave
   at the least. */
FAKE_FN int fake_on_platter(fake_host *h, const char *name, const void *bytes, size_t len) {
    fake_file *f = fake_named(h, name);
    if (f == NULL || !f->named_disk || f->disk_size < len) return 0;
    return memmem(f->disk, f->disk_size, bytes, len) != NULL;
}

#endif
