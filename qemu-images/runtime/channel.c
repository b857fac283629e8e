/* A virtio-serial port: metrics lines out, settings lines in. */
#define _GNU_SOURCE
#include "vnf.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 4096, REPORT_BYTES = 192 * 1024 }; /* all histograms full */

static atomic_int period_ms = 1000;
static char greeting[256];

const char *channel_set_period(const char *value)
{
    char *end;
    long ms = strtol(value, &end, 10);
    if (end == value || *end || ms < 20 || ms > 60000)
        return "must be in [20, 60000]";
    period_ms = (int)ms;
    return NULL;
}

static double processor_s(clockid_t clock)
{
    struct timespec used;
    clock_gettime(clock, &used);
    return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

void metrics_json(struct text *out, bool drain)
{
    put(out, "{\"type\": \"metrics\", \"uptime_s\": %.6f, \"cpu_s\": %.6f, ", (double)now_us() / 1e6,
        processor_s(CLOCK_PROCESS_CPUTIME_ID));
    http_report(out, drain);
    put(out, "\"relay\": ");
    relay_report(out);
    put(out, ", \"load\": ");
    load_report(out, drain);
    put(out, ", \"stream\": ");
    stream_report(out);
    put(out, ", \"attack\": ");
    attack_report(out);
    put(out, "}");
}

/* The device file of our port among the virtio-serial ports; false when the machine has none. */
static bool find(char *path, size_t room)
{
    bool found = false;
    DIR *folder = opendir("/sys/class/virtio-ports");
    for (struct dirent *entry; folder && !found && (entry = readdir(folder));) {
        char name[64] = "", place[320];
        snprintf(place, sizeof place, "/sys/class/virtio-ports/%s/name", entry->d_name);
        FILE *file = fopen(place, "re");
        if (!file)
            continue;
        found = fgets(name, sizeof name, file) && !strncmp(name, CHANNEL_NAME, strlen(CHANNEL_NAME));
        fclose(file);
        if (found)
            snprintf(path, room, "/dev/%s", entry->d_name);
    }
    if (folder)
        closedir(folder);
    return found;
}

/* False when the host does not listen: the line is dropped, never waited for. */
static bool say(int port, const char *line)
{
    static char whole[REPORT_BYTES + 1]; /* one thread speaks */
    size_t size = strlen(line);
    if (size > REPORT_BYTES - 1)
        return true;
    memcpy(whole, line, size);
    whole[size++] = '\n';
    for (size_t done = 0; done < size;) {
        ssize_t count = write(port, whole + done, size - done);
        if (count > 0) {
            done += (size_t)count;
        } else if (errno != EAGAIN || !done) {
            return false;
        } else {
            struct pollfd waiting = {port, POLLOUT, 0};
            if (poll(&waiting, 1, 1000) <= 0 || waiting.revents & POLLHUP)
                return false;
        }
    }
    return true;
}

static void obey(int port, char *line)
{
    static char answer[REPORT_BYTES]; /* one thread speaks */
    static const struct {
        const char *key;
        const char *(*set)(const char *);
    } settings[] = {{"relay", relay_set},   {"load", load_set},      {"metrics_ms", channel_set_period},
                    {"stream", stream_set}, {"clock", stream_clock}, {"attack", attack_set}};
    static const struct {
        const char *key;
        void (*answer)(struct text *, const char *);
    } queries[] = {{"time", stream_time}, {"flows", stream_flows}, {"release", stream_release}};
    const char *wrong = "unknown setting; there are relay, load, metrics_ms, stream, clock, attack";
    size_t length = strcspn(line, " ");
    const char *value = line[length] ? line + length + 1 : "";
    line[length] = 0;
    if (!strcmp(line, "poweroff"))
        reboot(RB_POWER_OFF);
    for (size_t i = 0; i < sizeof queries / sizeof *queries; i++)
        if (!strcmp(line, queries[i].key)) {
            struct text out = {answer, sizeof answer, false};
            queries[i].answer(&out, value);
            say(port, out.full ? "{\"type\": \"refused\", \"reason\": \"too long an answer\"}" : answer);
            return;
        }
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        if (!strcmp(line, settings[i].key))
            wrong = settings[i].set(value);
    char reply[256];
    snprintf(reply, sizeof reply, wrong ? "{\"type\": \"refused\", \"reason\": \"%s\"}" : "{\"type\": \"set\"}", wrong);
    say(port, reply);
}

static void *converse(void *argument)
{
    (void)argument;
    static char report[REPORT_BYTES];
    char path[300], input[LINE_BYTES];
    size_t have = 0;
    int port = -1;
    for (int tries = 0; port < 0 && tries < 500; tries++) { /* the port appears when the host has answered */
        if (find(path, sizeof path))
            port = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        if (port < 0)
            usleep(2000);
    }
    if (port < 0) {
        complain("no virtio-serial port %s: no metrics", CHANNEL_NAME);
        return NULL;
    }
    bool greeted = say(port, greeting);
    uint64_t next = now_us();
    for (;;) {
        uint64_t now = now_us();
        if (now >= next) {
            struct text out = {report, sizeof report, false};
            metrics_json(&out, true);
            greeted = (greeted || say(port, greeting)) && (out.full || say(port, report));
            next = now + (uint64_t)period_ms * 1000u;
        }
        struct pollfd waiting = {port, POLLIN, 0};
        int wait_ms = (int)((next - now) / 1000u) + 1;
        if (poll(&waiting, 1, wait_ms) <= 0)
            continue;
        ssize_t count = waiting.revents & POLLIN ? read(port, input + have, sizeof input - 1 - have) : 0;
        if (count <= 0) { /* nobody on the host: it would be reported at once for ever */
            usleep(50000);
            have = 0;
            continue;
        }
        have += (size_t)count;
        input[have] = 0;
        for (char *end; (end = strchr(input, '\n'));) {
            *end = 0;
            obey(port, input);
            have -= (size_t)(end + 1 - input);
            memmove(input, end + 1, have + 1);
        }
        if (have == sizeof input - 1)
            have = 0; /* no line is that long */
    }
    return NULL;
}

void channel_start(const char *hello)
{
    snprintf(greeting, sizeof greeting, "%s", hello);
    start_thread(converse, NULL);
}
