/* The log on the real file system: what it may be, who may have it, how it is locked. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"
#include "test.h"

#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

static char dir[64], path[128], lock_path[160];
static opc__mem mem;
static int count;
static opcomms_error err;

static opcomms_err on_found(void *user, uint64_t uid, uint64_t ref, const opc__msg_meta *m) {
    (void)user;
    (void)uid;
    (void)ref;
    (void)m;
    count++;
    return OPCOMMS_OK;
}

static opcomms_err open_path(const char *at, opc__store **out) {
    opc__log_options o;
    opc__store_owner owner;
    memset(&o, 0, sizeof o);
    memset(&err, 0, sizeof err);
    count = 0;
    o.plat = opc__plat_default();
    o.mem = &mem;
    o.path = at;
    o.buffer_bytes = 65536;
    o.puts_max = 4;
    o.ahead_bytes = OPC__LOG_AHEAD;
    o.log_bytes_max = 1 << 26;
    memset(&owner, 0, sizeof owner);
    owner.found = on_found;
    o.owner = &owner;
    return opc__log_open(&o, out, &err);
}

static void put(opc__store *s) {
    opc__msg_meta m;
    uint32_t p = 0;
    uint64_t uid, ref, position;
    memset(&m, 0, sizeof m);
    m.dest = (const uint8_t *)"dest";
    m.dest_len = 4;
    m.bytes = 5;
    CHECK_EQ(s->c->begin(s, &p), OPCOMMS_OK);
    CHECK_EQ(s->c->data(s, p, (const uint8_t *)"hello", 5), OPCOMMS_OK);
    CHECK_EQ(s->c->commit(s, p, &m, &uid, &ref, &position), OPCOMMS_OK);
    CHECK_EQ(s->c->flush_begin(s), OPCOMMS_OK);
    CHECK_EQ(s->c->flush_end(s, s->c->flush_run(s)), OPCOMMS_OK);
}

static void clean(void) {
    (void)unlink(path);
    (void)rmdir(path);
    (void)unlink(lock_path);
    (void)rmdir(lock_path);
}

static void refused(void) {
    opc__store *s = NULL;
    opcomms_err rc = open_path(path, &s);
    CHECK_EQ(rc, OPCOMMS_E_IO);
    CHECK(err.os_code != 0);
    if (rc == OPCOMMS_OK) (void)s->c->close(s);
    CHECK_EQ(mem.used, 0);
}

TEST(a_log_is_private_and_survives_the_process) {
    opc__store *s = NULL;
    struct stat st;
    mode_t old = umask(0);
    int status = -1;
    pid_t child;
    clean();
    child = fork();
    if (child == 0) {
        if (open_path(path, &s) != OPCOMMS_OK) _exit(1);
        put(s);
        put(s);
        _exit(test_bad ? 2 : 0); /* no close */
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    umask(old);
    CHECK(stat(path, &st) == 0 && (st.st_mode & 07777) == 0600);
    CHECK(stat(lock_path, &st) == 0 && (st.st_mode & 07777) == 0600 && st.st_size == 0);
    CHECK_EQ(open_path(path, &s), OPCOMMS_OK);
    CHECK_EQ(count, 2);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    CHECK_EQ(mem.used, 0);
}

TEST(one_log_has_one_owner_in_this_process_and_in_others) {
    opc__store *s = NULL, *t = NULL;
    int status = -1;
    pid_t child;
    clean();
    CHECK_EQ(open_path(path, &s), OPCOMMS_OK);
#if defined(F_OFD_SETLK)
    CHECK_EQ(open_path(path, &t), OPCOMMS_E_IN_USE);
    CHECK_EQ(open_path(path, &t), OPCOMMS_E_IN_USE); /* the refused one has not let the lock go */
#endif
    child = fork();
    if (child == 0) {
        memset(&mem, 0, sizeof mem);
        opc__key_default_mem(&mem);
        _exit(open_path(path, &t) == OPCOMMS_E_IN_USE ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    put(s);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    CHECK_EQ(open_path(path, &t), OPCOMMS_OK);
    CHECK_EQ(count, 1);
    CHECK_EQ(t->c->close(t), OPCOMMS_OK);
}

/* ---- compaction beside a thread that flushes ---- */

#define MANY 4000
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t place[MANY + 1], to_come[MANY + 1], over_to;
static int pending, stop, compactions;
static opc__store *beside;

static int is_live(void *user, uint64_t uid) {
    (void)user;
    return uid > over_to && uid <= MANY;
}

static void is_moved(void *user, uint64_t uid, uint64_t ref) {
    (void)user;
    to_come[uid] = ref;
}

static void is_switched(void *user, int done) {
    uint64_t i;
    (void)user;
    compactions += done;
    for (i = over_to + 1; i <= MANY && done; i++) {
        if (to_come[i] != 0) place[i] = to_come[i];
    }
    memset(to_come, 0, sizeof to_come);
}

static void *flusher(void *user) {
    (void)user;
    for (;;) {
        int go;
        opcomms_err rc;
        (void)pthread_mutex_lock(&mutex);
        go = pending || (!stop && beside->c->flush_begin(beside) == OPCOMMS_OK);
        pending = 0;
        if (!go && stop) break;
        (void)pthread_mutex_unlock(&mutex);
        if (!go) {
            (void)sched_yield();
            continue;
        }
        rc = beside->c->flush_run(beside);
        (void)pthread_mutex_lock(&mutex);
        CHECK_EQ(beside->c->flush_end(beside, rc), OPCOMMS_OK);
        (void)pthread_mutex_unlock(&mutex);
    }
    (void)pthread_mutex_unlock(&mutex);
    return NULL;
}

static opcomms_err put_beside(uint64_t n) {
    static uint8_t data[3000];
    opc__msg_meta m;
    uint32_t p = 0;
    uint64_t uid = 0, position;
    opcomms_err rc;
    memset(&m, 0, sizeof m);
    memset(data, (int)n, sizeof data);
    m.bytes = n % 2 ? 3000 : 100;
    rc = beside->c->begin(beside, &p);
    if (rc == OPCOMMS_OK) rc = beside->c->data(beside, p, data, (size_t)m.bytes);
    if (rc != OPCOMMS_OK) return rc;
    rc = beside->c->commit(beside, p, &m, &uid, &place[n], &position);
    if (rc != OPCOMMS_OK) beside->c->abort(beside, p);
    CHECK(rc != OPCOMMS_OK || uid == n);
    return rc;
}

TEST(a_compaction_goes_on_beside_a_thread_that_flushes_and_the_log_keeps_its_lock) {
    opc__store *t = NULL;
    int done;
    uint64_t n, position = 0;
    size_t got = 0;
    pthread_t thread;
    uint8_t byte = 0;
    clean();
    CHECK_EQ(open_path(path, &beside), OPCOMMS_OK);
    opc__log_of(beside)->owner.live = is_live; /* as if it had been opened with them */
    opc__log_of(beside)->owner.moved = is_moved;
    opc__log_of(beside)->owner.switched = is_switched;
    CHECK(pthread_create(&thread, NULL, flusher, NULL) == 0);
    for (n = 1; n <= MANY;) {
        int flush = 0;
        opcomms_err rc;
        (void)pthread_mutex_lock(&mutex);
        rc = put_beside(n);
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_AGAIN);
        if (rc == OPCOMMS_OK && n > over_to + 20) {
            rc = beside->c->ack(beside, place[over_to + 1], over_to + 1, &position);
            over_to += rc == OPCOMMS_OK;
        }
        n += rc == OPCOMMS_OK || place[n] != 0;
        rc = beside->c->compact(beside, n < MANY - 5 && n % 64 == 0, &flush);
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_AGAIN);
        if (flush) pending = 1;
        (void)pthread_mutex_unlock(&mutex);
        if (n % 16 == 0) (void)sched_yield();
    }
    (void)pthread_mutex_lock(&mutex);
    stop = 1;
    (void)pthread_mutex_unlock(&mutex);
    CHECK(pthread_join(thread, NULL) == 0);
    /* However busy the disk was: the one that is under way ends, and one begins now that nothing is
       added, so that the size tells something. */
    for (n = 0, done = compactions; n < 2000 && compactions < done + 2; n++) {
        int flush = 0;
        opcomms_err rc = beside->c->compact(beside, 1, &flush);
        CHECK(rc == OPCOMMS_OK || rc == OPCOMMS_E_AGAIN);
        if (flush) CHECK_EQ(beside->c->flush_end(beside, beside->c->flush_run(beside)), OPCOMMS_OK);
    }
    CHECK(compactions == done + 2);
    for (n = over_to + 1; n <= MANY; n++) {
        CHECK_EQ(beside->c->read(beside, place[n], 99, &byte, 1, &got), OPCOMMS_OK);
        CHECK(got == 1 && byte == (uint8_t)n);
    }
#if defined(F_OFD_SETLK)
    CHECK_EQ(open_path(path, &t), OPCOMMS_E_IN_USE);
#endif
    CHECK_EQ(beside->c->close(beside), OPCOMMS_OK);
    CHECK_EQ(open_path(path, &t), OPCOMMS_OK);
    CHECK_EQ(count, (int)(MANY - over_to));
    CHECK(t != NULL && t->c->bytes(t) < 1000000);
    CHECK_EQ(t->c->close(t), OPCOMMS_OK);
}

TEST(links_and_all_but_regular_files_of_our_own_are_refused) {
    char target[160];
    struct stat st;
    opc__store *s = NULL;
    clean();
    snprintf(target, sizeof target, "%s/target", dir);
    CHECK(symlink(target, path) == 0); /* to nothing */
    refused();
    CHECK(lstat(target, &st) != 0);
    CHECK_EQ(open_path(target, &s), OPCOMMS_OK); /* to a good log */
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    refused();
    clean();
    CHECK(symlink(target, lock_path) == 0);
    refused();
    clean();
    CHECK(mkfifo(path, 0600) == 0);
    refused();
    clean();
    CHECK(mkdir(path, 0700) == 0);
    refused();
    clean();
    CHECK(mkfifo(lock_path, 0600) == 0);
    refused();
    clean();
    (void)unlink(target);
    snprintf(target, sizeof target, "%s/target.lock", dir);
    (void)unlink(target);
    if (geteuid() == 0) { /* only root can make somebody else's file */
        CHECK_EQ(open_path(path, &s), OPCOMMS_OK);
        CHECK_EQ(s->c->close(s), OPCOMMS_OK);
        CHECK(chown(path, 12345, 12345) == 0);
        refused();
    } else {
        printf("not root: a log of another owner is not tried\n");
    }
    clean();
    CHECK_EQ(open_path("no/such/directory/log", &s), OPCOMMS_E_NOT_FOUND);
    CHECK_EQ(open_path("directory/", &s), OPCOMMS_E_INVAL);
}

TEST(the_directory_is_held_and_may_be_moved_meanwhile) {
    char sub[100], moved[100], at[160];
    opc__store *s = NULL;
    snprintf(sub, sizeof sub, "%s/sub", dir);
    snprintf(moved, sizeof moved, "%s/moved", dir);
    snprintf(at, sizeof at, "%s/log", sub);
    CHECK(mkdir(sub, 0700) == 0);
    CHECK_EQ(open_path(at, &s), OPCOMMS_OK);
    CHECK(rename(sub, moved) == 0);
    put(s);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    snprintf(at, sizeof at, "%s/log", moved);
    CHECK_EQ(open_path(at, &s), OPCOMMS_OK);
    CHECK_EQ(count, 1);
    CHECK_EQ(s->c->close(s), OPCOMMS_OK);
    (void)unlink(at);
    snprintf(at, sizeof at, "%s/log.lock", moved);
    (void)unlink(at);
    CHECK(rmdir(moved) == 0);
}

int main(void) {
    strcpy(dir, "/tmp/opcomms-test-XXXXXX");
    if (mkdtemp(dir) == NULL) return 1;
    snprintf(path, sizeof path, "%s/peer.log", dir);
    snprintf(lock_path, sizeof lock_path, "%s.lock", path);
    opc__key_default_mem(&mem);
    RUN(a_log_is_private_and_survives_the_process);
    RUN(one_log_has_one_owner_in_this_process_and_in_others);
    RUN(a_compaction_goes_on_beside_a_thread_that_flushes_and_the_log_keeps_its_lock);
    RUN(links_and_all_but_regular_files_of_our_own_are_refused);
    RUN(the_directory_is_held_and_may_be_moved_meanwhile);
    clean();
    if (rmdir(dir) != 0) {
        printf("%s: something was left behind\n", dir);
        test_failed++;
    }
    return test_end();
}
