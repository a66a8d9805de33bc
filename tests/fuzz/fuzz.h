/* What all fuzz targets share: the implementation with asserts that abort, a counting allocator,
   a platform whose files live in memory, and slices for feeding input piece by piece.

   A target is one file that defines `static void fuzz_NAME(const uint8_t *data, size_t size)` and
   ends with FUZZ_TARGET(fuzz_NAME). replay.c includes all of them into one program, so their
   helpers have names of their own. */
#ifndef OPCOMMS_FUZZ_H
#define OPCOMMS_FUZZ_H

#if defined(__GNUC__)
#define FUZZ_FN static __attribute__((unused))
#else
#define FUZZ_FN static
#endif

struct opcomms_platform;
FUZZ_FN void fuzz_fail(const char *file, int line, const char *what);
FUZZ_FN const struct opcomms_platform *fuzz_platform(void);

#define OPCOMMS_ASSERT(c) ((c) ? (void)0 : fuzz_fail(__FILE__, __LINE__, #c))
#define FUZZ_CHECK(c) ((c) ? (void)0 : fuzz_fail(__FILE__, __LINE__, #c))

/* Functions that use the built-in platform get the one in memory: the definition, which has `void`
   between its brackets, keeps a name of its own, and the calls, which have nothing, go here. */
#define FUZZ_PLATFORM_void fuzz_posix_platform(void)
#define FUZZ_PLATFORM_ fuzz_platform()
#define opc__posix_platform(nothing) FUZZ_PLATFORM_##nothing

#define OPCOMMS_MAX_FRAME 65536u
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#include <stdio.h>
#include <stdlib.h>

FUZZ_FN void fuzz_fail(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
    abort();
}

#if defined(FUZZ_REPLAY)
#define FUZZ_TARGET(function) /* called by name from replay.c */
#else
#define FUZZ_TARGET(function)                                     \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size); \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { \
        function(data, size);                                     \
        return 0;                                                 \
    }
#endif

/* ---- memory that counts ---- */

typedef struct fuzz_memory {
    size_t now;
    size_t peak;
    size_t calls;
} fuzz_memory;

FUZZ_FN void *fuzz_alloc(void *user, size_t n) {
    fuzz_memory *m = (fuzz_memory *)user;
    m->now += n;
    m->calls++;
    if (m->now > m->peak) m->peak = m->now;
    return malloc(n);
}

FUZZ_FN void fuzz_release(void *user, void *p, size_t n) {
    fuzz_memory *m = (fuzz_memory *)user;
    FUZZ_CHECK(m->now >= n);
    m->now -= n;
    free(p);
}

FUZZ_FN void fuzz_mem(opc__mem *mem, fuzz_memory *m) {
    memset(m, 0, sizeof *m);
    memset(mem, 0, sizeof *mem);
    mem->alloc = fuzz_alloc;
    mem->release = fuzz_release;
    mem->user = m;
}

/* ---- bytes that grow ---- */

typedef struct fuzz_buf {
    uint8_t *p;
    size_t len;
    size_t cap;
} fuzz_buf;

FUZZ_FN void fuzz_put(fuzz_buf *b, const void *p, size_t n) {
    if (n > b->cap - b->len) {
        b->cap = (b->len + n) * 2 + 256;
        b->p = (uint8_t *)realloc(b->p, b->cap);
        FUZZ_CHECK(b->p != NULL);
    }
    if (n > 0) memcpy(b->p + b->len, p, n);
    b->len += n;
}

FUZZ_FN void fuzz_str(fuzz_buf *b, const char *s) { fuzz_put(b, s, strlen(s)); }

FUZZ_FN int fuzz_same(const fuzz_buf *a, const fuzz_buf *b) {
    return a->len == b->len && (a->len == 0 || memcmp(a->p, b->p, a->len) == 0);
}

FUZZ_FN void fuzz_free(fuzz_buf *b) {
    free(b->p);
    memset(b, 0, sizeof *b);
}

/* A copy of exactly n bytes, so that the sanitizer sees a read behind its end. */
FUZZ_FN uint8_t *fuzz_exact(const uint8_t *p, size_t n) {
    uint8_t *copy = (uint8_t *)malloc(n > 0 ? n : 1);
    FUZZ_CHECK(copy != NULL);
    if (n > 0) memcpy(copy, p, n);
    return copy;
}

/* ---- slices: the same input in one piece, byte by byte, and cut where the input decides ---- */

enum { FUZZ_WHOLE, FUZZ_BYTES, FUZZ_CUT, FUZZ_WAYS };

typedef struct fuzz_slices {
    int way;
    uint32_t state;
} fuzz_slices;

FUZZ_FN void fuzz_slices_init(fuzz_slices *s, int way, const uint8_t *p, size_t n) {
    s->way = way;
    s->state = opc__crc32c(0, p, n) | 1u;
}

FUZZ_FN size_t fuzz_slice(fuzz_slices *s, size_t left) {
    size_t n = left;
    if (s->way == FUZZ_BYTES) n = 1;
    if (s->way == FUZZ_CUT) {
        s->state = s->state * 1664525u + 1013904223u;
        n = 1u + (s->state >> 24) % ((s->state & 0x10000u) ? 7u : 64u);
    }
    return n < left ? n : left;
}

/* ---- a platform with files in memory ---- */

#define FUZZ_FILES 4

typedef struct fuzz_file {
    char name[64];
    fuzz_buf data;
    int exists;
    int locked;
} fuzz_file;

typedef struct fuzz_disk {
    fuzz_file file[FUZZ_FILES];
    uint32_t random;
    uint64_t changes; /* writes, truncations, renames, removals, creations */
} fuzz_disk;

static fuzz_disk fuzz_the_disk;

FUZZ_FN fuzz_file *fuzz_find(const char *name) {
    int i;
    for (i = 0; i < FUZZ_FILES; i++) {
        fuzz_file *f = &fuzz_the_disk.file[i];
        if (f->exists && strcmp(f->name, name) == 0) return f;
    }
    return NULL;
}

FUZZ_FN fuzz_file *fuzz_create(const char *name) {
    int i;
    FUZZ_CHECK(strlen(name) < sizeof fuzz_the_disk.file[0].name);
    for (i = 0; i < FUZZ_FILES; i++) {
        fuzz_file *f = &fuzz_the_disk.file[i];
        if (f->exists) continue;
        strcpy(f->name, name);
        f->exists = 1;
        f->locked = 0;
        f->data.len = 0;
        return f;
    }
    FUZZ_CHECK(!"more files than expected");
    return NULL;
}

FUZZ_FN void fuzz_disk_clear(void) {
    int i;
    for (i = 0; i < FUZZ_FILES; i++) {
        fuzz_the_disk.file[i].exists = 0;
        fuzz_free(&fuzz_the_disk.file[i].data);
    }
    fuzz_the_disk.random = 1;
    fuzz_the_disk.changes = 0;
}

FUZZ_FN uint64_t fuzz_now_us(void *user) {
    (void)user;
    return 1000000u;
}
FUZZ_FN int64_t fuzz_wall_s(void *user) {
    (void)user;
    return 1700000000;
}
FUZZ_FN opcomms_err fuzz_random(void *user, void *out, size_t len) {
    uint8_t *p = (uint8_t *)out;
    (void)user;
    while (len-- > 0) {
        fuzz_the_disk.random = fuzz_the_disk.random * 1664525u + 1013904223u;
        *p++ = (uint8_t)(fuzz_the_disk.random >> 24);
    }
    return OPCOMMS_OK;
}
FUZZ_FN opcomms_err fuzz_dir_open(void *user, const char *path, intptr_t *dir, int *os) {
    (void)user;
    (void)path;
    *os = 0;
    *dir = 100;
    return OPCOMMS_OK;
}
FUZZ_FN opcomms_err fuzz_dir_sync(void *user, intptr_t dir, int *os) {
    (void)user;
    *os = 0;
    FUZZ_CHECK(dir == 100);
    return OPCOMMS_OK;
}
FUZZ_FN void fuzz_dir_close(void *user, intptr_t dir) {
    (void)user;
    FUZZ_CHECK(dir == 100);
}
FUZZ_FN opcomms_err fuzz_file_open(void *user, intptr_t dir, const char *name, uint32_t mode,
                                   intptr_t *file, int *os) {
    fuzz_file *f = fuzz_find(name);
    (void)user;
    *os = 0;
    FUZZ_CHECK(dir == 100);
    if (f != NULL && (mode & OPCOMMS_FILE_EXCLUSIVE)) return OPCOMMS_E_IN_USE;
    if (f == NULL) {
        if (!(mode & OPCOMMS_FILE_CREATE)) return OPCOMMS_E_NOT_FOUND;
        f = fuzz_create(name);
        fuzz_the_disk.changes++;
    }
    *file = (intptr_t)(f - fuzz_the_disk.file);
    return OPCOMMS_OK;
}
FUZZ_FN fuzz_file *fuzz_at(intptr_t file) {
    FUZZ_CHECK(file >= 0 && file < FUZZ_FILES);
    FUZZ_CHECK(fuzz_the_disk.file[file].exists);
    return &fuzz_the_disk.file[file];
}
FUZZ_FN opcomms_err fuzz_file_lock(void *user, intptr_t file, int *os) {
    fuzz_file *f = fuzz_at(file);
    (void)user;
    *os = 0;
    if (f->locked) return OPCOMMS_E_IN_USE;
    f->locked = 1;
    return OPCOMMS_OK;
}
FUZZ_FN opcomms_err fuzz_file_size(void *user, intptr_t file, uint64_t *bytes, int *os) {
    (void)user;
    *os = 0;
    *bytes = fuzz_at(file)->data.len;
    return OPCOMMS_OK;
}
FUZZ_FN opcomms_err fuzz_file_read(void *user, intptr_t file, uint64_t offset, void *buf,
                                   size_t len, size_t *got, int *os) {
    fuzz_file *f = fuzz_at(file);
    size_t n = 0;
    (void)user;
    *os = 0;
    if (offset > (uint64_t)INT64_MAX) return OPCOMMS_E_IO; /* as the system does */
    if (offset < f->data.len) n = f->data.len - (size_t)offset;
    if (n > len) n = len;
    if (n > 0) memcpy(buf, f->data.p + offset, n);
    *got = n;
    return OPCOMMS_OK;
}
FUZZ_FN opcomms_err fuzz_file_write(void *user, intptr_t file, uint64_t offset, const void *buf,
                                    size_t len, size_t *put, int *os) {
    fuzz_file *f = fuzz_at(file);
    (void)user;
    *os = 0;
    FUZZ_CHECK(offset < (1u << 26) && len < (1u << 26));
    while (f->data.len < offset + len) fuzz_put(&f->data, "", 1);
    memcpy(f->data.p + offset, buf, len);
    fuzz_the_disk.changes++;
    *put = len;
    return OPCOMMS_OK;
}
FUZZ_FN opcomms_err fuzz_file_truncate(void *user, intptr_t file, uint64_t bytes, int *os) {
    fuzz_file *f = fuzz_at(file);
    (void)user;
    *os = 0;
    FUZZ_CHECK(bytes <= f->data.len); /* the library only ever cuts */
    f->data.len = (size_t)bytes;
    fuzz_the_disk.changes++;
    return OPCOMMS_OK;
}
FUZZ_FN opcomms_err fuzz_file_sync(void *user, intptr_t file, int *os) {
    (void)user;
    *os = 0;
    (void)fuzz_at(file);
    return OPCOMMS_OK;
}
FUZZ_FN void fuzz_file_close(void *user, intptr_t file) {
    (void)user;
    FUZZ_CHECK(file >= 0 && file < FUZZ_FILES);
    fuzz_the_disk.file[file].locked = 0; /* it may have been replaced since it was opened */
}
FUZZ_FN opcomms_err fuzz_file_remove(void *user, intptr_t dir, const char *name, int *os) {
    fuzz_file *f = fuzz_find(name);
    (void)user;
    *os = 0;
    FUZZ_CHECK(dir == 100);
    if (f == NULL) return OPCOMMS_E_NOT_FOUND;
    f->exists = 0;
    fuzz_the_disk.changes++;
    return OPCOMMS_OK;
}
FUZZ_FN opcomms_err fuzz_file_rename(void *user, intptr_t dir, const char *from, const char *to,
                                     int *os) {
    fuzz_file *f = fuzz_find(from);
    if (f == NULL) return OPCOMMS_E_NOT_FOUND;
    (void)fuzz_file_remove(user, dir, to, os);
    strcpy(f->name, to);
    fuzz_the_disk.changes++;
    return OPCOMMS_OK;
}

FUZZ_FN const opcomms_platform *fuzz_platform(void) {
    static opcomms_platform p;
    if (p.size == 0) {
        p.size = sizeof p;
        p.now_us = fuzz_now_us;
        p.wall_s = fuzz_wall_s;
        p.random = fuzz_random;
        p.dir_open = fuzz_dir_open;
        p.dir_sync = fuzz_dir_sync;
        p.dir_close = fuzz_dir_close;
        p.file_open = fuzz_file_open;
        p.file_lock = fuzz_file_lock;
        p.file_size = fuzz_file_size;
        p.file_read = fuzz_file_read;
        p.file_write = fuzz_file_write;
        p.file_truncate = fuzz_file_truncate;
        p.file_sync = fuzz_file_sync;
        p.file_close = fuzz_file_close;
        p.file_rename = fuzz_file_rename;
        p.file_remove = fuzz_file_remove;
    }
    return &p;
}

#endif
