/* Stream relays: what arrives on a port goes on to a target, and the target's answers back. */
#define _GNU_SOURCE
#include "vnf.h"
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_RELAYS = 8, MOST_STREAMS = 64 };

struct relay {
    bool tcp;
    uint16_t port;
    struct sockaddr_in target;
    int socket, stop;
    atomic_int users; /* threads, and the table while the relay is in it */
    atomic_ullong packets, bytes, refused;
    atomic_ullong last_us, widest_gap_us; /* the gap since the last report */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct relay *relays[MOST_RELAYS];
static int count_of_relays;

static void leave(struct relay *relay)
{
    if (atomic_fetch_sub(&relay->users, 1) == 1) {
        close(relay->socket);
        close(relay->stop);
        free(relay);
    }
}

static void passed(struct relay *relay, ssize_t size)
{
    uint64_t now = now_us(), last = atomic_exchange(&relay->last_us, now);
    atomic_fetch_add(&relay->packets, 1);
    atomic_fetch_add(&relay->bytes, (unsigned long long)size);
    if (last && now - last > relay->widest_gap_us)
        relay->widest_gap_us = now - last;
}

static void *udp_relay(void *argument)
{
    struct relay *relay = argument;
    static _Thread_local char data[2048]; /* a video packet is at most an Ethernet frame */
    struct sockaddr_in client = {0};
    struct pollfd waiting[2] = {{relay->socket, POLLIN, 0}, {relay->stop, POLLIN, 0}};
    while (poll(waiting, 2, -1) >= 0 && !waiting[1].revents) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t size = recvfrom(relay->socket, data, sizeof data, MSG_DONTWAIT, (struct sockaddr *)&from, &length);
        if (size < 0)
            continue;
        bool back = from.sin_addr.s_addr == relay->target.sin_addr.s_addr && from.sin_port == relay->target.sin_port;
        if (!back)
            client = from;
        else if (!client.sin_port)
            continue; /* nobody has asked yet */
        const struct sockaddr_in *to = back ? &client : &relay->target;
        if (sendto(relay->socket, data, (size_t)size, MSG_DONTWAIT, (const struct sockaddr *)to, sizeof *to) < 0)
            atomic_fetch_add(&relay->refused, 1);
        else
            passed(relay, size);
    }
    leave(relay);
    return NULL;
}

struct stream {
    struct relay *relay;
    int client, target;
};

/* One read and its writes; false at the end of the stream. */
static bool move(struct relay *relay, int from, int to, char *data, size_t room)
{
    ssize_t size = recv(from, data, room, 0);
    for (ssize_t done = 0, part; done < size; done += part)
        if ((part = send(to, data + done, (size_t)(size - done), MSG_NOSIGNAL)) <= 0)
            return false;
    if (size > 0)
        passed(relay, size);
    return size > 0;
}

static void *tcp_stream(void *argument)
{
    struct stream stream = *(struct stream *)argument;
    free(argument);
    char data[16384];
    if (connect(stream.target, (struct sockaddr *)&stream.relay->target, sizeof stream.relay->target) == 0) {
        struct pollfd waiting[3] = {
            {stream.client, POLLIN, 0}, {stream.target, POLLIN, 0}, {stream.relay->stop, POLLIN, 0}};
        while (poll(waiting, 3, -1) >= 0 && !waiting[2].revents) {
            if (waiting[0].revents && !move(stream.relay, stream.client, stream.target, data, sizeof data))
                break;
            if (waiting[1].revents && !move(stream.relay, stream.target, stream.client, data, sizeof data))
                break;
        }
    } else {
        atomic_fetch_add(&stream.relay->refused, 1);
    }
    close(stream.client);
    close(stream.target);
    leave(stream.relay);
    return NULL;
}

static void *tcp_relay(void *argument)
{
    struct relay *relay = argument;
    struct pollfd waiting[2] = {{relay->socket, POLLIN, 0}, {relay->stop, POLLIN, 0}};
    while (poll(waiting, 2, -1) >= 0 && !waiting[1].revents) {
        int client = accept4(relay->socket, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) {
            usleep(10000);
            continue;
        }
        struct timeval patience = {.tv_sec = 5};
        int target = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(target, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        struct stream *stream = malloc(sizeof *stream);
        bool started = false;
        if (target >= 0 && stream && atomic_fetch_add(&relay->users, 1) < MOST_STREAMS) {
            *stream = (struct stream){relay, client, target};
            started = start_thread(tcp_stream, stream);
        }
        if (!started) {
            if (target >= 0 && stream)
                atomic_fetch_sub(&relay->users, 1);
            free(stream);
            if (target >= 0)
                close(target);
            close(client);
            atomic_fetch_add(&relay->refused, 1);
        }
    }
    leave(relay);
    return NULL;
}

/* "udp:5004:10.0.0.1:5004"; NULL when it is malformed. */
static struct relay *parsed(char *item)
{
    char *rest = NULL, *end;
    const char *kind = strtok_r(item, ":", &rest), *port = strtok_r(NULL, ":", &rest);
    const char *address = strtok_r(NULL, ":", &rest), *target_port = strtok_r(NULL, ":", &rest);
    if (!kind || !port || !address || !target_port || *rest || (strcmp(kind, "udp") && strcmp(kind, "tcp")))
        return NULL;
    unsigned long from = strtoul(port, &end, 10);
    if (*end || !from || from > 65535)
        return NULL;
    unsigned long to = strtoul(target_port, &end, 10);
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons((uint16_t)to)};
    if (*end || !to || to > 65535 || !inet_aton(address, &target.sin_addr))
        return NULL;
    struct relay *relay = calloc(1, sizeof *relay);
    *relay = (struct relay){.tcp = kind[0] == 't', .port = (uint16_t)from, .target = target, .socket = -1};
    return relay;
}

static void stop_all(void)
{
    for (int i = 0; i < count_of_relays; i++) {
        eventfd_write(relays[i]->stop, 1);
        shutdown(relays[i]->socket, SHUT_RDWR);
        leave(relays[i]);
    }
    count_of_relays = 0;
}

static bool run(struct relay *relay)
{
    relay->socket = socket(AF_INET, (relay->tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);
    relay->stop = eventfd(0, EFD_CLOEXEC);
    /* The relay before this one on the same port may still be letting go of it. */
    setsockopt(relay->socket, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    setsockopt(relay->socket, SOL_SOCKET, SO_REUSEPORT, &(int){1}, sizeof(int));
    setsockopt(relay->socket, SOL_SOCKET, SO_RCVBUF, &(int){1 << 20}, sizeof(int));
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons(relay->port)};
    relay->users = 2;
    if (bind(relay->socket, (struct sockaddr *)&place, sizeof place) || (relay->tcp && listen(relay->socket, 16)) ||
        !start_thread(relay->tcp ? tcp_relay : udp_relay, relay)) {
        complain("relay on port %u: %s", relay->port, strerror(errno));
        relay->users = 1;
        leave(relay);
        return false;
    }
    return true;
}

const char *relay_set(const char *value)
{
    char copy[1024];
    struct relay *made[MOST_RELAYS];
    int count = 0;
    if (strlen(value) >= sizeof copy)
        return "too long";
    strcpy(copy, value);
    char *rest = NULL;
    for (char *item = strtok_r(copy, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
        struct relay *relay = count < MOST_RELAYS ? parsed(item) : NULL;
        if (!relay) {
            while (count)
                free(made[--count]);
            return "must be at most 8 of udp:PORT:ADDRESS:PORT or tcp:PORT:ADDRESS:PORT";
        }
        made[count++] = relay;
    }
    const char *wrong = NULL;
    pthread_mutex_lock(&lock);
    stop_all();
    for (int i = 0; i < count; i++) {
        if (run(made[i]))
            relays[count_of_relays++] = made[i];
        else
            wrong = "a port is in use";
    }
    pthread_mutex_unlock(&lock);
    return wrong;
}

void relay_report(struct text *out)
{
    put(out, "[");
    pthread_mutex_lock(&lock);
    for (int i = 0; i < count_of_relays; i++) {
        struct relay *relay = relays[i];
        put(out, "%s{\"protocol\": \"%s\", \"port\": %u, \"packets\": %llu, \"bytes\": %llu, \"refused\": %llu, ",
            i ? ", " : "", relay->tcp ? "tcp" : "udp", relay->port, (unsigned long long)relay->packets,
            (unsigned long long)relay->bytes, (unsigned long long)relay->refused);
        put(out, "\"widest_gap_us\": %llu}", (unsigned long long)atomic_exchange(&relay->widest_gap_us, 0));
    }
    pthread_mutex_unlock(&lock);
    put(out, "]");
}
