/* The VNF runtime of a partition: one static program, the guest's first process.
 *
 * init.c    mounts, kernel modules, network, the kernel command line
 * http.c    HTTP responder
 * relay.c   UDP and TCP stream relays
 * load.c    periodic CPU load
 * echo.c    UDP echo
 * histogram.c  delays as the host's programs report them
 * channel.c metrics out and settings in, as lines on a virtio-serial port
 *
 * Settings have one spelling on the kernel command line (twinbed.KEY=VALUE) and on the channel (KEY VALUE):
 *   relay  udp:PORT:ADDRESS:PORT or tcp:..., several joined by commas; empty stops all
 *   load   RUNTIME_US/PERIOD_US, several joined by commas; empty stops all
 *   metrics_ms  how often a metrics line is sent
 * Only on the channel: poweroff.
 * Only on the command line: name, ip (ADDRESS/LENGTH), gateway, http and echo (port; 0: none),
 * root (a disk with the user's own root file system, to which the guest goes over).
 */
#ifndef VNF_H
#define VNF_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STACK_BYTES (64 * 1024)
#define CHANNEL_NAME "twinbed.channel"

/* Appends to a text buffer; what does not fit is cut and `full` set. */
struct text {
    char *at;
    size_t room;
    bool full;
};
void put(struct text *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

uint64_t now_us(void);                                    /* CLOCK_MONOTONIC */
bool start_thread(void *(*body)(void *), void *argument); /* detached, small stack */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

extern char guest_name[64];

enum { HISTOGRAM_BINS = 1024 }; /* up to 600 s */
struct histogram {
    atomic_uint bins[HISTOGRAM_BINS];
    atomic_ullong sum_us;
};
void histogram_add(struct histogram *to, uint64_t us);
void histogram_report(struct text *out, struct histogram *from); /* and start again from nothing */

bool http_start(int port);
void http_report(struct text *out, bool drain); /* the histogram of answers only when it starts again */
bool echo_start(int port);

/* NULL, or what is wrong with the value (nothing is changed then). */
const char *relay_set(const char *value);
void relay_report(struct text *out);

const char *load_set(const char *value);
void load_report(struct text *out, bool drain); /* responses since the last report that drained them */
void burn_us(uint64_t us);          /* a fixed amount of work: `us` of an undisturbed processor */

void channel_start(const char *hello);
const char *channel_set_period(const char *value);
void metrics_json(struct text *out, bool drain); /* one JSON object without a line end */
#endif
