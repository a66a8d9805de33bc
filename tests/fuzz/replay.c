/* Runs the files of a folder through one target: replay NAME FOLDER [-v]. No fuzzer needed. */
#define FUZZ_REPLAY
#include "fuzz_frame.c"
#include "fuzz_native.c"
#include "fuzz_numbers.c"
#include "fuzz_json.c"
#include "fuzz_array.c"
#include "fuzz_request.c"
#include "fuzz_response.c"
#include "fuzz_pem.c"
#include "fuzz_key.c"
#include "fuzz_cert.c"
#include "fuzz_id.c"
#include "fuzz_allow.c"
#include "fuzz_route.c"
#include "fuzz_settings.c"
#include "fuzz_log.c"
#include "fuzz_tls.c"
#include "fuzz_conn.c"

#include <dirent.h>

static const struct {
    const char *name;
    void (*run)(const uint8_t *data, size_t size);
} targets[] = {{"frame", fuzz_frame},       {"json", fuzz_json},   {"array", fuzz_array},
               {"request", fuzz_request},   {"response", fuzz_response}, {"pem", fuzz_pem},
               {"key", fuzz_key},           {"cert", fuzz_cert},   {"id", fuzz_id},
               {"allow", fuzz_allow},       {"route", fuzz_route}, {"log", fuzz_log},
               {"tls", fuzz_tls},           {"conn", fuzz_conn},   {"settings", fuzz_settings},
               {"native", fuzz_native}, {"numbers", fuzz_numbers}};

static int replay(void (*run)(const uint8_t *data, size_t size), const char *path) {
    static uint8_t buf[1 << 20];
    FILE *f = fopen(path, "rb");
    uint8_t *exact;
    size_t n;
    if (f == NULL) return 0;
    n = fread(buf, 1, sizeof buf, f);
    fclose(f);
    exact = fuzz_exact(buf, n);
    run(exact, n);
    free(exact);
    return 1;
}

int main(int argc, char **argv) {
    size_t i;
    for (i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        if (argc == 1) printf("%s\n", targets[i].name);
        if (argc >= 3 && strcmp(argv[1], targets[i].name) == 0) {
            DIR *dir = opendir(argv[2]);
            struct dirent *e;
            int count = 0;
            while (dir != NULL && (e = readdir(dir)) != NULL) {
                char path[1024];
                if (e->d_name[0] == '.') continue;
                snprintf(path, sizeof path, "%s/%s", argv[2], e->d_name);
                if (argc > 3) fprintf(stderr, "%s\n", path);
                if (!replay(targets[i].run, path)) {
                    fprintf(stderr, "%s: cannot be read\n", path);
                    return 1;
                }
                count++;
            }
            if (dir != NULL) closedir(dir);
            printf("%s: %d files\n", argv[1], count);
            return count > 0 ? 0 : 1;
        }
    }
    return argc == 1 ? 0 : 1;
}
