/* Periodic CPU load: tasks that do a fixed amount of work every period and measure how long it took. */
#define _GNU_SOURCE
#include "vnf.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_TASKS = 16, ROUND = 1000 };

struct task {
    uint64_t runtime_us, period_us, first_us; /* release */
    atomic_bool stop;
    atomic_int users; /* its thread, and the table while the task is in it */
    atomic_ullong jobs, missed;
    /* since the last report */
    atomic_ullong reported, sum_us, longest_us;
    struct histogram responses; /* since the last report that drained it */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct task *tasks[MOST_TASKS];
static int count_of_tasks;
static double rounds_per_us;
static pthread_once_t measured = PTHREAD_ONCE_INIT;

static void work(uint64_t rounds)
{
    uint64_t value = 1;
    while (rounds--)
        for (int i = 0; i < ROUND; i++) {
            value = value * 6364136223846793005u + 1442695040888963407u;
            __asm__ volatile("" : "+r"(value)); /* or the compiler would do it all at once */
        }
}

/* The best of many short runs: what disturbs a run only makes it longer. */
static void measure(void)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 20; i++) {
        uint64_t start = now_us();
        work(100);
        uint64_t taken = now_us() - start;
        if (taken && taken < best)
            best = taken;
    }
    rounds_per_us = 100.0 / (double)best;
}

void burn_us(uint64_t us)
{
    pthread_once(&measured, measure);
    work((uint64_t)((double)us * rounds_per_us + 0.5));
}

static void leave(struct task *task)
{
    if (atomic_fetch_sub(&task->users, 1) == 1)
        free(task);
}

static void *periodic(void *argument)
{
    struct task *task = argument;
    uint64_t release = task->first_us;
    while (!task->stop) {
        struct timespec when = {(time_t)(release / 1000000u), (long)(release % 1000000u) * 1000};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
            ;
        burn_us(task->runtime_us);
        uint64_t response = now_us() - release;
        atomic_fetch_add(&task->jobs, 1);
        atomic_fetch_add(&task->reported, 1);
        atomic_fetch_add(&task->sum_us, response);
        if (response > task->period_us)
            atomic_fetch_add(&task->missed, 1);
        if (response > task->longest_us)
            task->longest_us = response;
        histogram_add(&task->responses, response);
        release += task->period_us; /* a late job delays the next: work is not dropped */
    }
    leave(task);
    return NULL;
}

const char *load_set(const char *value)
{
    static const char *rule = "must be at most 16 of RUNTIME_US/PERIOD_US with 0 < RUNTIME_US <= PERIOD_US <= 60000000";
    uint64_t wanted[MOST_TASKS][2]; /* runtime and period, us */
    int count = 0;
    for (const char *at = value; *at;) {
        char *end;
        unsigned long long runtime = strtoull(at, &end, 10), period;
        if (end == at || *end != '/' || count == MOST_TASKS)
            return rule;
        at = end + 1;
        period = strtoull(at, &end, 10);
        if (end == at || (*end && *end != ',') || !runtime || runtime > period || period > 60000000)
            return rule;
        wanted[count][0] = runtime;
        wanted[count++][1] = period;
        at = *end ? end + 1 : end;
    }
    pthread_mutex_lock(&lock);
    while (count_of_tasks) {
        tasks[--count_of_tasks]->stop = true;
        leave(tasks[count_of_tasks]);
    }
    if (count)
        pthread_once(&measured, measure);
    uint64_t now = now_us(); /* of all: their releases keep to the common divisor of their periods */
    for (int i = 0; i < count; i++) {
        struct task *task = calloc(1, sizeof *task);
        if (!task)
            break;
        task->runtime_us = wanted[i][0];
        task->period_us = wanted[i][1];
        task->first_us = now + task->period_us;
        task->users = 2;
        if (!start_thread(periodic, task)) {
            free(task);
            break;
        }
        tasks[count_of_tasks++] = task;
    }
    bool whole = count_of_tasks == count;
    pthread_mutex_unlock(&lock);
    return whole ? NULL : "out of memory";
}

void load_report(struct text *out, bool drain)
{
    put(out, "[");
    pthread_mutex_lock(&lock);
    for (int i = 0; i < count_of_tasks; i++) {
        struct task *task = tasks[i];
        unsigned long long jobs = atomic_exchange(&task->reported, 0), sum = atomic_exchange(&task->sum_us, 0);
        put(out, "%s{\"runtime_us\": %llu, \"period_us\": %llu, \"jobs\": %llu, \"missed\": %llu, ", i ? ", " : "",
            (unsigned long long)task->runtime_us, (unsigned long long)task->period_us, (unsigned long long)task->jobs,
            (unsigned long long)task->missed);
        unsigned long long longest = atomic_exchange(&task->longest_us, 0);
        if (jobs)
            put(out, "\"response_us\": {\"mean\": %llu, \"max\": %llu}", sum / jobs, longest);
        else
            put(out, "\"response_us\": null");
        if (drain) {
            put(out, ", \"responses\": ");
            histogram_report(out, &task->responses);
        }
        put(out, "}");
    }
    pthread_mutex_unlock(&lock);
    put(out, "]");
}
