/* The VNF runtime of a partition: one static program, the guest's first process.
 *
 * init.c    mounts, kernel modules, network, the kernel command line
 * http.c    HTTP responder
 * relay.c   UDP and TCP stream relays
 * load.c    periodic CPU load
 * echo.c    UDP echo
 * stream.c, question.c  stream server, as the host's app_stream.py
 * attack.c  denial of service from within, for tests of isolation
 * histogram.c  delays as the host's programs report them
 * channel.c metrics out and settings in, as lines on a virtio-serial port
 *
 * Settings have one spelling on the kernel command line (twinbed.KEY=VALUE) and on the channel (KEY VALUE):
 *   relay  udp:PORT:ADDRESS:PORT or tcp:..., several joined by commas; empty stops all
 *   load   RUNTIME_US/PERIOD_US, several joined by commas; empty stops all
 *   metrics_ms  how often a metrics line is sent
 * Only on the channel: poweroff; clock NS (to the host's CLOCK_MONOTONIC); stream off|go|hold|drop|adopt ...;
 * attack none|cpu:SECONDS|memory:SECONDS; and what is answered with an object of its own: time, flows, release NS ADDRESSES.
 * Only on the command line: name, ip (ADDRESS/LENGTH), gateway, http and echo (port; 0: none),
 * root (a disk with the user's own root file system, to which the guest goes over).
 */
#ifndef VNF_H
#define VNF_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

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
uint64_t now_ns(void);
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

/* UDP with the address that a packet came to or leaves from. */
struct in_addr;
struct sockaddr_in;
int datagram_socket(int port); /* -1 when it cannot be had */
ssize_t datagram_take(int socket, void *data, size_t room, int flags, struct in_addr *local, struct sockaddr_in *peer);
bool datagram_send(int socket, const void *data, size_t size, struct in_addr local, struct sockaddr_in *peer);

struct question {
    char flow[256];
    double rate, packet_bytes;
    bool stop;
};
bool question_parse(const char *data, struct question *asked); /* false when it is malformed */

const char *stream_set(const char *value);
const char *stream_clock(const char *value);
void stream_flows(struct text *out, const char *value);
void stream_release(struct text *out, const char *value);
void stream_time(struct text *out, const char *value);
void stream_report(struct text *out);

const char *attack_set(const char *value);
void attack_report(struct text *out);

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
