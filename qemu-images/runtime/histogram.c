/* Histograms of delays, 2 % a bin: bin i holds [1.02^i, 1.02^(i+1)) us, bin 0 also what is shorter. */
#include "vnf.h"
#include <pthread.h>

static double bounds[HISTOGRAM_BINS];
static pthread_once_t made = PTHREAD_ONCE_INIT;

static void make_bounds(void)
{
    double bound = 1;
    for (int i = 0; i < HISTOGRAM_BINS; i++, bound *= 1.02)
        bounds[i] = bound;
}

void histogram_add(struct histogram *to, uint64_t us)
{
    pthread_once(&made, make_bounds);
    int low = 0, high = HISTOGRAM_BINS;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (bounds[middle] <= (double)us)
            low = middle;
        else
            high = middle;
    }
    atomic_fetch_add(&to->bins[low], 1);
    atomic_fetch_add(&to->sum_us, us);
}

void histogram_report(struct text *out, struct histogram *from)
{
    unsigned long long count = 0;
    const char *comma = "";
    put(out, "{\"bins\": {");
    for (int i = 0; i < HISTOGRAM_BINS; i++) {
        unsigned number = atomic_exchange(&from->bins[i], 0);
        if (!number)
            continue;
        put(out, "%s\"%d\": %u", comma, i, number);
        comma = ", ";
        count += number;
    }
    put(out, "}, \"count\": %llu, \"sum_us\": %llu}", count, (unsigned long long)atomic_exchange(&from->sum_us, 0));
}
