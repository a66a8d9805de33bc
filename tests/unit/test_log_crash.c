/* The log and power cuts: after every call that changes the medium, images of what the medium may
   hold are opened, and so are images of the recovery itself. LOG_IMAGES: how many; LOG_SEED. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"
#include "logworld.h"

static fdisk disk, level[3]; /* level n: images made while an image of level n - 1 is opened */
static world *now;
static found image_found[3];
static uint64_t images, images_wanted, images_nested, compactions, of_4096;
static uint64_t rng;
static int per_call;

static void cut_images(const fdisk *src, int depth, int count);

static void on_recovery(void *user, fdisk *d, int kind) {
    (void)kind;
    cut_images(d, *(int *)user + 1, 1);
}

/* What was shown is shown again, wherever the power goes after that. */
static void check_shown_stays(const fdisk *img, const found *shown) {
    fdisk *again = &level[2];
    found *f = &image_found[2];
    opcomms_error err;
    opc__store *s = NULL;
    opc__log_options o = now->o;
    unsigned how = (unsigned)fd_below(&rng, FD_CUTS);
    fd_cut(img, again, 512, (int)how, &rng);
    o.plat = &again->plat;
    images++;
    if (log_open_with(&o, &s, f, &err) != OPCOMMS_OK) {
        world_bad(now, "a power cut after recovery: refused at", err.position);
        return;
    }
    if (f->count != shown->count ||
        memcmp(f->uid, shown->uid, (size_t)f->count * sizeof f->uid[0]) != 0) {
        world_bad(now, "a power cut after recovery changed what is shown", (uint64_t)f->count);
    }
    log_abandon(s);
}

static void open_image(fdisk *img, int depth) {
    opc__store *s = NULL;
    opcomms_error err;
    opc__log_options o = now->o;
    found *f = &image_found[depth];
    opcomms_err rc;
    int d = depth;
    images++;
    if (depth > 0) images_nested++;
    o.plat = &img->plat;
    if (depth == 0 && fd_below(&rng, 8) == 0) {
        img->hook = on_recovery;
        img->hook_user = &d;
    }
    rc = log_open_with(&o, &s, f, &err);
    img->hook = NULL;
    if (rc != OPCOMMS_OK) {
        printf("%s\n", err.text);
        world_bad(now, "a power cut is taken for damage at", err.position);
        return;
    }
    world_check(now, fd_below(&rng, 4) == 0 ? s : NULL, f);
    if (depth == 0) check_shown_stays(img, f);
    log_abandon(s);
}

static void cut_images(const fdisk *src, int depth, int count) {
    int i;
    for (i = 0; i < count; i++) {
        unsigned sector = fd_below(&rng, 3) == 0 ? 4096 : 512;
        of_4096 += sector == 4096;
        fd_cut(src, &level[depth], sector, (int)fd_below(&rng, FD_CUTS), &rng);
        open_image(&level[depth], depth);
        if (fd_below(&rng, 8) == 0) { /* the process dies, the system lives a while longer */
            fd_kill(src, &level[depth]);
            open_image(&level[depth], depth);
        }
    }
}

static void on_change(void *user, fdisk *d, int kind) {
    (void)user;
    (void)kind;
    if (images < images_wanted) cut_images(d, 0, per_call);
}

/* The world goes on after a power cut of its own. */
static void world_power_cut(world *w) {
    static fdisk other;
    if (other.plat.size == 0) fd_init(&other, 7);
    log_abandon(w->s);
    w->s = NULL;
    fd_cut(w->d, &other, 512, (int)fd_below(&rng, FD_CUTS), &rng);
    fd_kill(&other, w->d);
    w->d->hook = on_change;
    CHECK_EQ(world_open(w), OPCOMMS_OK);
}

static void run_world(uint64_t seed, int durability, uint32_t ahead) {
    static world w;
    int i;
    fd_clear(&disk);
    disk.rng = seed;
    disk.hook = on_change;
    disk.write_most = seed % 5 == 0 ? 700 : 0; /* a write is many then, and a cut comes between */
    world_init(&w, &disk, seed, durability);
    w.o.ahead_bytes = ahead;
    now = &w;
    CHECK_EQ(world_open(&w), OPCOMMS_OK);
    for (i = 0; i < 60 && w.s != NULL && w.bad == 0; i++) {
        CHECK_EQ(world_step(&w), OPCOMMS_OK);
        if (fd_below(&rng, 24) == 0 && w.s != NULL) world_power_cut(&w);
    }
    if (w.s != NULL) CHECK_EQ(w.s->c->close(w.s), OPCOMMS_OK);
    compactions += w.compactions;
    CHECK_EQ(w.bad, 0);
    if (w.bad) printf("seed %llu durability %d\n", (unsigned long long)seed, durability);
    CHECK_EQ(mem.used, 0);
}

TEST(what_was_durable_survives_every_power_cut_and_a_cut_is_never_taken_for_damage) {
    uint64_t seed = getenv("LOG_SEED") ? strtoull(getenv("LOG_SEED"), NULL, 10) : 1;
    images_wanted = getenv("LOG_IMAGES") ? strtoull(getenv("LOG_IMAGES"), NULL, 10) : 6000;
    per_call = images_wanted > 20000 ? 4 : 1;
    while (images < images_wanted && test_bad == 0) {
        rng = seed;
        run_world(seed, (int)(seed % 3), seed % 4 < 2 ? 16384 : 0);
        seed++;
    }
    CHECK(images >= images_wanted);
    CHECK(images_nested > images_wanted / 50);
    CHECK(compactions > images_wanted / 2000);
    CHECK(of_4096 > images_wanted / 10);
    printf("%llu power-cut images opened, %llu of them within a recovery, %llu of sectors of 4096, "
           "the others of 512, through %llu compactions, up to seed %llu\n",
           (unsigned long long)images, (unsigned long long)images_nested,
           (unsigned long long)of_4096, (unsigned long long)compactions,
           (unsigned long long)seed);
}

TEST(a_creation_that_is_cut_short_anywhere_is_made_good) {
    static const size_t most[] = {0, 100, 512, 700, 3000};
    static world w;
    size_t i;
    images_wanted = UINT64_MAX;
    per_call = 60;
    for (i = 0; i < sizeof most / sizeof most[0]; i++) {
        fd_clear(&disk);
        disk.hook = on_change;
        disk.write_most = most[i];
        world_init(&w, &disk, i, 0);
        now = &w;
        CHECK_EQ(world_open(&w), OPCOMMS_OK);
        CHECK_EQ(w.s->c->close(w.s), OPCOMMS_OK);
        CHECK_EQ(w.bad, 0);
    }
}

int main(void) {
    int i;
    pool_init();
    fd_init(&disk, 1);
    for (i = 0; i < 3; i++) fd_init(&level[i], (uint64_t)i + 2);
    RUN(what_was_durable_survives_every_power_cut_and_a_cut_is_never_taken_for_damage);
    RUN(a_creation_that_is_cut_short_anywhere_is_made_good);
    fd_free(&disk);
    for (i = 0; i < 3; i++) fd_free(&level[i]);
    pool_end();
    return test_end();
}
