/* A disk in memory behind opcomms_platform. It knows what is on the medium, what only the page
   cache holds, and every write in between, so that it can make the images a power cut may leave:
   a sector is atomic, and of each sector the medium has any one of the versions it had since the
   last sync. Of the changes of the directory since its last sync it has the first few, in their
   order. Each call can be made to fail, writes to be short, space to end at any byte.
   A failed sync is the worst kind: what was unsynced is never written again by itself. */
#ifndef OPCOMMS_FAKEDISK_H
#define OPCOMMS_FAKEDISK_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FD_FILES 8
#define FD_NAMES 16
#define FD_HANDLES 16

typedef struct fd_op { /* a write, or a truncation when p is NULL */
    uint64_t at;
    size_t len;
    uint8_t *p;
} fd_op;

typedef struct fd_file {
    char name[64];
    int exists;
    char media_name[64];
    int named; /* the directory entry is on the medium, as media_name */
    int open;  /* handles */
    int locked;
    uint8_t *cache;
    size_t size, cap;
    uint8_t *media;
    size_t media_size, media_cap;
    fd_op *op;
    size_t ops, ops_cap;
} fd_file;

enum { FD_OPEN, FD_LOCK, FD_SIZE, FD_READ, FD_WRITE, FD_TRUNCATE, FD_SYNC, FD_DIR_OPEN, FD_DIR_SYNC,
       FD_RANDOM, FD_RENAME, FD_REMOVE, FD_KINDS };

typedef struct fd_name { /* a change of the directory: file `file` is called that now */
    int file;
    char name[64]; /* empty: nothing */
} fd_name;

typedef struct fdisk fdisk;
struct fdisk {
    opcomms_platform plat;
    fd_file file[FD_FILES];
    fd_name name[FD_NAMES]; /* since the last sync of the directory */
    int names;
    int rename_lies; /* a renaming that fails was made nevertheless */
    struct { int used, file, lock; } handle[FD_HANDLES];
    int handles; /* open now; directories too */
    uint64_t rng; /* what the platform's random gives */
    uint64_t calls;
    uint64_t fail_at;   /* the call with this number fails; 0: none */
    int failed_call;    /* its kind */
    int fail_on;        /* and so do all after it */
    int fail_partly;    /* a failing write or truncation leaves a part behind */
    size_t write_most;  /* no write takes more at once; 0: no limit */
    uint64_t space;     /* bytes a file can have; 0: no limit */
    uint64_t bytes_read;
    uint64_t bytes_written;
    uint64_t syncs;
    void (*hook)(void *user, fdisk *d, int kind); /* after each call that changes the medium */
    void *hook_user;
};

static inline uint64_t fd_next(uint64_t *s) { /* splitmix64 */
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t fd_below(uint64_t *s, uint64_t n) { return n == 0 ? 0 : fd_next(s) % n; }

static inline void fd_reserve(uint8_t **p, size_t *cap, size_t want) {
    size_t n = *cap == 0 ? 8192 : *cap;
    if (want <= *cap) return;
    while (n < want) n *= 2;
    *p = (uint8_t *)realloc(*p, n);
    if (*p == NULL) abort();
    *cap = n;
}

static inline void fd_ops_drop(fd_file *f) {
    size_t i;
    for (i = 0; i < f->ops; i++) free(f->op[i].p);
    f->ops = 0;
}

static inline void fd_op_add(fd_file *f, uint64_t at, const uint8_t *p, size_t len) {
    fd_op *o;
    if (f->ops == f->ops_cap) {
        f->ops_cap = f->ops_cap == 0 ? 16 : f->ops_cap * 2;
        f->op = (fd_op *)realloc(f->op, f->ops_cap * sizeof *f->op);
        if (f->op == NULL) abort();
    }
    o = &f->op[f->ops++];
    o->at = at;
    o->len = len;
    o->p = NULL;
    if (p != NULL) {
        o->p = (uint8_t *)malloc(len + 1);
        if (o->p == NULL) abort();
        memcpy(o->p, p, len);
    }
}

/* One write or truncation, applied to a byte image. */
static inline void fd_apply(uint8_t **p, size_t *size, size_t *cap, const uint8_t *from,
                            uint64_t at, size_t len) {
    size_t end = (size_t)at + (from != NULL ? len : 0);
    fd_reserve(p, cap, end);
    if (end > *size) memset(*p + *size, 0, end - *size);
    if (from == NULL || end > *size) *size = end;
    if (from != NULL) memcpy(*p + at, from, len);
}

/* What was written since the last sync reaches the medium, and nothing else. */
static inline void fd_sync_file(fd_file *f) {
    size_t k;
    for (k = 0; k < f->ops; k++) {
        const fd_op *o = &f->op[k];
        fd_apply(&f->media, &f->media_size, &f->media_cap, o->p, o->at, o->len);
    }
    fd_ops_drop(f);
}

/* The medium is as the cache. */
static inline void fd_even(fd_file *f) {
    fd_reserve(&f->media, &f->media_cap, f->size);
    if (f->size > 0) memcpy(f->media, f->cache, f->size);
    f->media_size = f->size;
    fd_ops_drop(f);
}

static inline int fd_call(fdisk *d, int kind) { /* 1: this one fails */
    d->calls++;
    if (d->fail_at == 0 || (d->fail_on ? d->calls < d->fail_at : d->calls != d->fail_at)) return 0;
    d->failed_call = kind;
    return 1;
}

static inline void fd_after(fdisk *d, int kind) {
    if (d->hook != NULL) d->hook(d->hook_user, d, kind);
}

static uint64_t fd_now_us(void *user) { (void)user; return 1; }
static int64_t fd_wall_s(void *user) { (void)user; return 1700000000; }

static inline opcomms_err fd_random(void *user, void *out, size_t len) {
    fdisk *d = (fdisk *)user;
    uint8_t *p = (uint8_t *)out;
    size_t i;
    if (fd_call(d, FD_RANDOM)) return OPCOMMS_E_RANDOM;
    for (i = 0; i < len; i++) p[i] = (uint8_t)fd_next(&d->rng);
    return OPCOMMS_OK;
}

static inline opcomms_err fd_dir_open(void *user, const char *path, intptr_t *dir, int *os_code) {
    fdisk *d = (fdisk *)user;
    (void)path;
    if (fd_call(d, FD_DIR_OPEN)) { *os_code = 5; return OPCOMMS_E_IO; }
    d->handles++;
    *dir = 1000;
    return OPCOMMS_OK;
}

/* The directory as it was when the changes from `upto` on had not been made. */
static inline void fd_names_apply(fdisk *d, int upto) {
    int i;
    for (i = 0; i < upto; i++) {
        fd_file *f = &d->file[d->name[i].file];
        int k;
        for (k = 0; k < FD_FILES && d->name[i].name[0] != 0; k++) {
            if (strcmp(d->file[k].media_name, d->name[i].name) == 0) d->file[k].named = 0;
        }
        f->named = d->name[i].name[0] != 0;
        memcpy(f->media_name, d->name[i].name, sizeof f->media_name);
    }
    d->names = 0;
}

static inline void fd_name_add(fdisk *d, int file, const char *name) {
    if (d->names == FD_NAMES) abort();
    d->name[d->names].file = file;
    strcpy(d->name[d->names++].name, name);
}

static inline opcomms_err fd_dir_sync(void *user, intptr_t dir, int *os_code) {
    fdisk *d = (fdisk *)user;
    (void)dir;
    if (fd_call(d, FD_DIR_SYNC)) { *os_code = 5; return OPCOMMS_E_IO; }
    fd_names_apply(d, d->names);
    fd_after(d, FD_DIR_SYNC);
    return OPCOMMS_OK;
}

static inline void fd_dir_close(void *user, intptr_t dir) {
    (void)dir;
    ((fdisk *)user)->handles--;
}

static inline fd_file *fd_find(fdisk *d, const char *name) {
    int i;
    for (i = 0; i < FD_FILES; i++) {
        if (d->file[i].exists && strcmp(d->file[i].name, name) == 0) return &d->file[i];
    }
    return NULL;
}

static inline fd_file *fd_create(fdisk *d, const char *name) {
    int i;
    for (i = 0; i < FD_FILES; i++) {
        fd_file *f = &d->file[i];
        if (f->exists || f->named || f->open > 0) continue;
        fd_ops_drop(f);
        f->size = f->media_size = 0;
        f->exists = 1;
        f->named = 0;
        f->locked = 0;
        strcpy(f->name, name);
        fd_name_add(d, i, name);
        return f;
    }
    abort();
}

static inline opcomms_err fd_file_open(void *user, intptr_t dir, const char *name, uint32_t mode,
                                intptr_t *file, int *os_code) {
    fdisk *d = (fdisk *)user;
    fd_file *f = fd_find(d, name);
    int h;
    (void)dir;
    if (fd_call(d, FD_OPEN)) { *os_code = 5; return OPCOMMS_E_IO; }
    if (f == NULL && !(mode & OPCOMMS_FILE_CREATE)) return OPCOMMS_E_NOT_FOUND;
    if (f != NULL && (mode & OPCOMMS_FILE_EXCLUSIVE)) { *os_code = 17; return OPCOMMS_E_IO; }
    if (f == NULL) {
        f = fd_create(d, name);
        fd_after(d, FD_OPEN);
    }
    f->open++;
    for (h = 0; d->handle[h].used; h++) {
        if (h + 1 == FD_HANDLES) abort();
    }
    d->handle[h].used = 1;
    d->handle[h].lock = 0;
    d->handle[h].file = (int)(f - d->file);
    d->handles++;
    *file = h;
    return OPCOMMS_OK;
}

static inline opcomms_err fd_file_lock(void *user, intptr_t file, int *os_code) {
    fdisk *d = (fdisk *)user;
    fd_file *f = &d->file[d->handle[file].file];
    if (fd_call(d, FD_LOCK)) { *os_code = 37; return OPCOMMS_E_IO; }
    if (f->locked) return OPCOMMS_E_IN_USE;
    f->locked = d->handle[file].lock = 1;
    return OPCOMMS_OK;
}

static inline opcomms_err fd_file_size(void *user, intptr_t file, uint64_t *bytes, int *os_code) {
    fdisk *d = (fdisk *)user;
    if (fd_call(d, FD_SIZE)) { *os_code = 5; return OPCOMMS_E_IO; }
    *bytes = d->file[d->handle[file].file].size;
    return OPCOMMS_OK;
}

static inline opcomms_err fd_file_read(void *user, intptr_t file, uint64_t offset, void *buf,
                                       size_t len, size_t *got, int *os_code) {
    fdisk *d = (fdisk *)user;
    fd_file *f = &d->file[d->handle[file].file];
    if (fd_call(d, FD_READ)) { *os_code = 5; return OPCOMMS_E_IO; }
    if (d->write_most != 0 && len > d->write_most) len = d->write_most;
    if (offset >= f->size) len = 0;
    if (len > f->size - (offset < f->size ? offset : f->size)) len = f->size - (size_t)offset;
    if (len > 0) memcpy(buf, f->cache + offset, len);
    d->bytes_read += len;
    *got = len;
    return OPCOMMS_OK;
}

static inline opcomms_err fd_file_write(void *user, intptr_t file, uint64_t offset, const void *buf,
                                 size_t len, size_t *put, int *os_code) {
    fdisk *d = (fdisk *)user;
    fd_file *f = &d->file[d->handle[file].file];
    int fails = fd_call(d, FD_WRITE);
    if (fails && !d->fail_partly) { *os_code = 5; return OPCOMMS_E_IO; }
    if (fails) len /= 2;
    if (d->write_most != 0 && len > d->write_most) len = d->write_most;
    if (d->space != 0) {
        uint64_t left = offset < d->space ? d->space - offset : 0;
        if (left == 0 && len > 0) { *os_code = 28; return OPCOMMS_E_IO; }
        if (len > left) len = (size_t)left;
    }
    if (len > 0) {
        fd_op_add(f, offset, (const uint8_t *)buf, len);
        fd_apply(&f->cache, &f->size, &f->cap, (const uint8_t *)buf, offset, len);
    }
    d->bytes_written += len;
    fd_after(d, FD_WRITE);
    *put = len;
    if (fails) { *os_code = 5; return OPCOMMS_E_IO; }
    return OPCOMMS_OK;
}

static inline opcomms_err fd_file_truncate(void *user, intptr_t file, uint64_t bytes,
                                           int *os_code) {
    fdisk *d = (fdisk *)user;
    fd_file *f = &d->file[d->handle[file].file];
    int fails = fd_call(d, FD_TRUNCATE);
    if (fails && !d->fail_partly) { *os_code = 5; return OPCOMMS_E_IO; }
    fd_op_add(f, bytes, NULL, 0);
    fd_apply(&f->cache, &f->size, &f->cap, NULL, bytes, 0);
    fd_after(d, FD_TRUNCATE);
    if (fails) { *os_code = 5; return OPCOMMS_E_IO; }
    return OPCOMMS_OK;
}

static inline opcomms_err fd_file_sync(void *user, intptr_t file, int *os_code) {
    fdisk *d = (fdisk *)user;
    fd_file *f = &d->file[d->handle[file].file];
    d->syncs++;
    if (fd_call(d, FD_SYNC)) {
        fd_ops_drop(f); /* the cache keeps it, the medium never gets it */
        *os_code = 5;
        return OPCOMMS_E_IO;
    }
    fd_sync_file(f);
    fd_after(d, FD_SYNC);
    return OPCOMMS_OK;
}

static inline void fd_file_close(void *user, intptr_t file) {
    fdisk *d = (fdisk *)user;
    if (d->handle[file].lock) d->file[d->handle[file].file].locked = 0;
    d->file[d->handle[file].file].open--;
    d->handle[file].used = 0;
    d->handles--;
}

static inline opcomms_err fd_remove(void *user, intptr_t dir, const char *name, int *os_code) {
    fdisk *d = (fdisk *)user;
    fd_file *f = fd_find(d, name);
    (void)dir;
    if (fd_call(d, FD_REMOVE)) { *os_code = 5; return OPCOMMS_E_IO; }
    if (f == NULL) return OPCOMMS_E_NOT_FOUND;
    f->exists = 0;
    fd_name_add(d, (int)(f - d->file), "");
    fd_after(d, FD_REMOVE);
    return OPCOMMS_OK;
}

/* Both entries change at once, for the medium too. */
static inline opcomms_err fd_rename(void *user, intptr_t dir, const char *from, const char *to,
                                    int *os_code) {
    fdisk *d = (fdisk *)user;
    fd_file *f = fd_find(d, from), *old = fd_find(d, to);
    int fails = fd_call(d, FD_RENAME);
    (void)dir;
    if (fails) *os_code = 5;
    if (fails && !d->rename_lies) return OPCOMMS_E_IO;
    if (f == NULL) return OPCOMMS_E_NOT_FOUND;
    if (old != NULL) old->exists = 0;
    strcpy(f->name, to);
    fd_name_add(d, (int)(f - d->file), to); /* takes the name from whoever has it */
    fd_after(d, FD_RENAME);
    return fails ? OPCOMMS_E_IO : OPCOMMS_OK;
}

static inline void fd_init(fdisk *d, uint64_t seed) {
    memset(d, 0, sizeof *d);
    d->rng = seed;
    d->plat.size = (uint32_t)sizeof d->plat;
    d->plat.user = d;
    d->plat.now_us = fd_now_us;
    d->plat.wall_s = fd_wall_s;
    d->plat.random = fd_random;
    d->plat.dir_open = fd_dir_open;
    d->plat.dir_sync = fd_dir_sync;
    d->plat.dir_close = fd_dir_close;
    d->plat.file_open = fd_file_open;
    d->plat.file_lock = fd_file_lock;
    d->plat.file_size = fd_file_size;
    d->plat.file_read = fd_file_read;
    d->plat.file_write = fd_file_write;
    d->plat.file_truncate = fd_file_truncate;
    d->plat.file_sync = fd_file_sync;
    d->plat.file_close = fd_file_close;
    d->plat.file_rename = fd_rename;
    d->plat.file_remove = fd_remove;
}

/* The built-in platform with the files of this disk. */
static inline opcomms_platform fd_platform(fdisk *d) {
    opcomms_platform plat = *opcomms_platform_default();
    plat.user = d;
    plat.dir_open = d->plat.dir_open;
    plat.dir_sync = d->plat.dir_sync;
    plat.dir_close = d->plat.dir_close;
    plat.file_open = d->plat.file_open;
    plat.file_lock = d->plat.file_lock;
    plat.file_size = d->plat.file_size;
    plat.file_read = d->plat.file_read;
    plat.file_write = d->plat.file_write;
    plat.file_truncate = d->plat.file_truncate;
    plat.file_sync = d->plat.file_sync;
    plat.file_close = d->plat.file_close;
    plat.file_rename = d->plat.file_rename;
    plat.file_remove = d->plat.file_remove;
    plat.file_locked = NULL;
    return plat;
}

static inline void fd_free(fdisk *d) {
    int i;
    for (i = 0; i < FD_FILES; i++) {
        fd_ops_drop(&d->file[i]);
        free(d->file[i].op);
        free(d->file[i].cache);
        free(d->file[i].media);
    }
    memset(d, 0, sizeof *d);
}

/* Forgets everything but the buffers. */
static inline void fd_clear(fdisk *d) {
    int i;
    for (i = 0; i < FD_FILES; i++) {
        fd_file *f = &d->file[i];
        fd_ops_drop(f);
        f->size = f->media_size = 0;
        f->exists = f->named = f->locked = f->open = 0;
    }
    d->names = d->rename_lies = 0;
    memset(d->handle, 0, sizeof d->handle);
    d->handles = 0;
    d->calls = d->fail_at = 0;
    d->fail_partly = d->fail_on = 0;
    d->write_most = 0;
    d->space = 0;
    d->hook = NULL;
}

/* A file with this content, on the medium. */
static inline fd_file *fd_put(fdisk *d, const char *name, const uint8_t *p, size_t len) {
    fd_file *f = fd_find(d, name);
    if (f == NULL) f = fd_create(d, name);
    f->size = 0;
    fd_apply(&f->cache, &f->size, &f->cap, NULL, 0, 0);
    if (len > 0) fd_apply(&f->cache, &f->size, &f->cap, p, 0, len);
    fd_even(f);
    fd_names_apply(d, d->names);
    return f;
}

/* The process dies, the system lives: dst has the cache, the medium and what is between. */
static inline void fd_kill(const fdisk *src, fdisk *dst) {
    int i;
    size_t k;
    fd_clear(dst);
    dst->rng = src->rng ^ 0x5555;
    memcpy(dst->name, src->name, sizeof dst->name);
    dst->names = src->names;
    for (i = 0; i < FD_FILES; i++) {
        const fd_file *f = &src->file[i];
        fd_file *g = &dst->file[i];
        memcpy(g->name, f->name, sizeof g->name);
        memcpy(g->media_name, f->media_name, sizeof g->name);
        g->exists = f->exists;
        g->named = f->named;
        fd_reserve(&g->cache, &g->cap, f->size);
        fd_reserve(&g->media, &g->media_cap, f->media_size);
        if (f->size > 0) memcpy(g->cache, f->cache, f->size);
        if (f->media_size > 0) memcpy(g->media, f->media, f->media_size);
        g->size = f->size;
        g->media_size = f->media_size;
        for (k = 0; k < f->ops; k++) fd_op_add(g, f->op[k].at, f->op[k].p, f->op[k].len);
    }
}

/* How many of the operations since the last sync each sector saw. */
enum { FD_CUT_NOTHING, FD_CUT_ORDERED, FD_CUT_ANY, FD_CUT_BUT_ONE, FD_CUT_ONLY_ONE, FD_CUT_ALL,
       FD_CUTS };

static inline void fd_cut_file(const fd_file *f, fd_file *g, unsigned sector, int how,
                               uint64_t *rng) {
    uint64_t most = f->media_size, sectors, s;
    size_t k, upto = (size_t)fd_below(rng, f->ops + 1), end = f->media_size;
    uint64_t one;
    if (f->ops == 0) return;
    for (k = 0; k < f->ops; k++) {
        uint64_t e = f->op[k].at + f->op[k].len;
        if (e > most) most = e;
    }
    sectors = (most + sector - 1) / sector;
    one = fd_below(rng, sectors + 1); /* == sectors: the size */
    /* the size: any it had; a larger size with nothing written reads as zeros */
    for (k = 0; k < f->ops; k++) {
        int on = how == FD_CUT_ALL || (how == FD_CUT_ORDERED && k < upto) ||
                 (how == FD_CUT_ANY && k < upto) || (how == FD_CUT_BUT_ONE && one != sectors) ||
                 (how == FD_CUT_ONLY_ONE && one == sectors);
        uint64_t e = f->op[k].at + f->op[k].len;
        if (!on) continue;
        if (f->op[k].p == NULL || e > end) end = (size_t)e;
    }
    fd_reserve(&g->cache, &g->cap, (size_t)most + sector);
    memset(g->cache, 0, (size_t)most + sector);
    if (f->media_size > 0) memcpy(g->cache, f->media, f->media_size);
    for (s = 0; s < sectors; s++) {
        uint64_t lo = s * sector, hi = lo + sector;
        size_t seen = how == FD_CUT_ALL       ? f->ops
                      : how == FD_CUT_ORDERED ? upto
                      : how == FD_CUT_ANY     ? (size_t)fd_below(rng, f->ops + 1)
                      : how == FD_CUT_BUT_ONE ? (s == one ? 0 : f->ops)
                                              : (s == one ? f->ops : 0);
        for (k = 0; k < seen; k++) {
            const fd_op *o = &f->op[k];
            uint64_t a = o->at > lo ? o->at : lo, b = o->at + o->len;
            if (o->p == NULL) {
                if (a < hi) memset(g->cache + a, 0, (size_t)(hi - a));
                continue;
            }
            if (b > hi) b = hi;
            if (a < b) memcpy(g->cache + a, o->p + (a - o->at), (size_t)(b - a));
        }
    }
    g->size = end;
}

/* The power goes: dst is what the medium may hold afterwards. */
static inline void fd_cut(const fdisk *src, fdisk *dst, unsigned sector, int how, uint64_t *rng) {
    int i, upto = how == FD_CUT_NOTHING ? 0
                  : how == FD_CUT_ALL   ? src->names
                                        : (int)fd_below(rng, (uint64_t)src->names + 1);
    fd_clear(dst);
    dst->rng = src->rng ^ fd_next(rng);
    for (i = 0; i < FD_FILES; i++) {
        dst->file[i].named = src->file[i].named;
        memcpy(dst->file[i].media_name, src->file[i].media_name, sizeof dst->file[i].name);
    }
    memcpy(dst->name, src->name, sizeof dst->name);
    fd_names_apply(dst, upto);
    for (i = 0; i < FD_FILES; i++) {
        const fd_file *f = &src->file[i];
        fd_file *g = &dst->file[i];
        memcpy(g->name, g->media_name, sizeof g->name);
        g->exists = g->named;
        if (!g->exists) continue;
        fd_reserve(&g->cache, &g->cap, f->media_size);
        if (f->media_size > 0) memcpy(g->cache, f->media, f->media_size);
        g->size = f->media_size;
        if (how != FD_CUT_NOTHING) fd_cut_file(f, g, sector, how, rng);
        fd_even(g);
    }
}

#endif
