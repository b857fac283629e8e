/* Denial of service from within, to be measured from outside: every processor busy, or all free memory walked
 * again and again. It ends by itself after the given time. */
#define _GNU_SOURCE
#include "vnf.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_SECONDS = 3600, LINE = 64, LEAST_MIB = 8 };

struct attack {
    atomic_int users; /* its threads, and the setting while it is in force */
    atomic_bool stop;
    uint64_t until_us;
    size_t bytes; /* 0: processors only */
    volatile uint8_t *memory;
    int threads;
    atomic_int next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct attack *current;

static void leave(struct attack *attack)
{
    if (atomic_fetch_sub(&attack->users, 1) == 1) {
        if (attack->bytes)
            munmap((void *)attack->memory, attack->bytes);
        free(attack);
    }
}

static bool over(const struct attack *attack) { return attack->stop || now_us() >= attack->until_us; }

static void *hammer(void *argument)
{
    struct attack *attack = argument;
    int place = atomic_fetch_add(&attack->next, 1);
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(place, &own);
    sched_setaffinity(0, sizeof own, &own);
    size_t part = attack->bytes / (size_t)attack->threads;
    volatile uint8_t *memory = attack->memory + (size_t)place * part;
    uint64_t value = 1;
    while (!over(attack)) {
        if (attack->bytes) {
            for (size_t at = 0; at < part; at += LINE) {
                memory[at] += 1;
                if (at % (1 << 20) == 0 && over(attack))
                    break;
            }
        } else {
            for (int i = 0; i < 100000; i++) {
                value = value * 6364136223846793005u + 1442695040888963407u;
                __asm__ volatile("" : "+r"(value));
            }
        }
    }
    leave(attack);
    return NULL;
}

/* Three quarters of what the guest has left: it must not run out of memory itself. */
static size_t free_bytes(void)
{
    unsigned long long kib = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %llu", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return (size_t)kib * 1024 / 4 * 3 / LINE * LINE;
}

static void stop(void)
{
    if (current) {
        current->stop = true;
        leave(current);
        current = NULL;
    }
}

static const char *start(bool memory, unsigned long seconds)
{
    struct attack *attack = calloc(1, sizeof *attack);
    if (!attack)
        return "out of memory";
    attack->threads = (int)sysconf(_SC_NPROCESSORS_ONLN);
    attack->until_us = now_us() + seconds * 1000000u;
    attack->users = 1;
    if (memory) {
        attack->bytes = free_bytes();
        void *found = attack->bytes < (size_t)LEAST_MIB << 20
                          ? MAP_FAILED
                          : mmap(NULL, attack->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (found == MAP_FAILED) {
            free(attack);
            return "memory: less than 8 MiB are free";
        }
        attack->memory = found;
    }
    current = attack;
    for (int i = 0; i < attack->threads; i++) {
        atomic_fetch_add(&attack->users, 1);
        if (!start_thread(hammer, attack)) {
            leave(attack);
            stop();
            return "out of memory";
        }
    }
    return NULL;
}

const char *attack_set(const char *value)
{
    static const char *rule = "must be none, cpu:SECONDS or memory:SECONDS with SECONDS in [1, 3600]";
    bool memory = !strncmp(value, "memory:", 7), cpu = !strncmp(value, "cpu:", 4);
    const char *wrong = NULL;
    unsigned long seconds = 0;
    if (memory || cpu) {
        char *end;
        const char *digits = strchr(value, ':') + 1;
        seconds = strtoul(digits, &end, 10);
        if (end == digits || *end || seconds < 1 || seconds > MOST_SECONDS)
            return rule;
    } else if (strcmp(value, "none")) {
        return rule;
    }
    pthread_mutex_lock(&lock);
    stop();
    if (seconds)
        wrong = start(memory, seconds);
    pthread_mutex_unlock(&lock);
    return wrong;
}

void attack_report(struct text *out)
{
    pthread_mutex_lock(&lock);
    if (!current || over(current)) {
        stop();
        put(out, "null");
    } else {
        put(out, "{\"kind\": \"%s\", \"left_s\": %.3f, \"bytes\": %llu}", current->bytes ? "memory" : "cpu",
            (double)(current->until_us - now_us()) / 1e6, (unsigned long long)current->bytes);
    }
    pthread_mutex_unlock(&lock);
}
