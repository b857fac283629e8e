/* HTTP responder: GET or POST of / (a line of text), /metrics (JSON), /work?us=N (answers after N us of work). */
#define _GNU_SOURCE
#include "vnf.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_CONNECTIONS = 128, REQUEST_BYTES = 4096, MOST_WORK_US = 10000000, MOST_BODY_BYTES = 1 << 20 };

static atomic_int connections;
static atomic_ullong answered, failures;
static struct histogram answers; /* from accept, or from the first byte of a later request, to the last of the answer */

void http_report(struct text *out, bool drain)
{
    put(out, "\"http_requests\": %llu, \"http_failures\": %llu, ", (unsigned long long)answered,
        (unsigned long long)failures);
    if (drain) {
        put(out, "\"http_responses\": ");
        histogram_report(out, &answers);
        put(out, ", ");
    }
}

static bool send_all(int client, const char *data, size_t size)
{
    while (size) {
        ssize_t count = send(client, data, size, MSG_NOSIGNAL);
        if (count <= 0)
            return false;
        data += count;
        size -= (size_t)count;
    }
    return true;
}

static bool answer(int client, const char *status, const char *kind, const char *body, bool keep)
{
    char head[256];
    int size = snprintf(head, sizeof head,
                        "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: %s\r\n\r\n", status,
                        kind, strlen(body), keep ? "keep-alive" : "close");
    char whole[REQUEST_BYTES + 256];
    size_t length = strlen(body);
    memcpy(whole, head, (size_t)size);
    memcpy(whole + size, body, length); /* bodies are made in a buffer of REQUEST_BYTES */
    atomic_fetch_add(&answered, 1);
    return send_all(client, whole, (size_t)size + length) && keep;
}

/* True while the connection stays open. */
static bool serve(int client, const char *request)
{
    char body[REQUEST_BYTES];
    const char *plain = "text/plain";
    bool keep = strstr(request, " HTTP/1.1\r\n") && !strcasestr(request, "\r\nconnection: close");
    const char *path = !strncmp(request, "GET ", 4) ? request + 4 : !strncmp(request, "POST ", 5) ? request + 5 : NULL;
    if (!path)
        return answer(client, "405 Method Not Allowed", plain, "only GET and POST\n", false);
    if (!strncmp(path, "/ ", 2)) {
        snprintf(body, sizeof body, "%s up %.3f s\n", guest_name, (double)now_us() / 1e6);
        return answer(client, "200 OK", plain, body, keep);
    }
    if (!strncmp(path, "/metrics ", 9)) {
        struct text out = {body, sizeof body, false};
        metrics_json(&out, false);
        return answer(client, "200 OK", "application/json", out.full ? "{}" : body, keep);
    }
    if (!strncmp(path, "/work?us=", 9)) {
        char *end;
        unsigned long long us = strtoull(path + 9, &end, 10);
        if (end == path + 9 || *end != ' ' || us > MOST_WORK_US)
            return answer(client, "400 Bad Request", plain, "us must be in [0, 10000000]\n", false);
        uint64_t start = now_us();
        burn_us(us);
        snprintf(body, sizeof body, "%llu us\n", (unsigned long long)(now_us() - start));
        return answer(client, "200 OK", plain, body, keep);
    }
    return answer(client, "404 Not Found", plain, "there are /, /metrics and /work?us=N\n", keep);
}

static size_t body_bytes(const char *head)
{
    const char *field = strcasestr(head, "\r\ncontent-length:");
    return field ? strtoul(field + 17, NULL, 10) : 0;
}

/* Read what is left of a body that nobody looks at; false when the client goes away. */
static bool drained(int client, size_t left)
{
    char data[1024];
    while (left) {
        ssize_t count = recv(client, data, left < sizeof data ? left : sizeof data, 0);
        if (count <= 0)
            return false;
        left -= (size_t)count;
    }
    return true;
}

static void *connection(void *argument)
{
    int client = (int)(intptr_t)argument;
    char request[REQUEST_BYTES];
    size_t have = 0;
    uint64_t begun = now_us();
    for (;;) {
        ssize_t count = recv(client, request + have, sizeof request - 1 - have, 0);
        if (count <= 0)
            break;
        begun = begun ? begun : now_us();
        have += (size_t)count;
        request[have] = 0;
        char *end = strstr(request, "\r\n\r\n");
        if (!end) {
            if (have < sizeof request - 1)
                continue;
            answer(client, "431 Request Header Fields Too Large", "text/plain", "too large\n", false);
            break;
        }
        size_t used = (size_t)(end + 4 - request);
        end[2] = 0; /* what follows is its body, then the next request */
        size_t body = body_bytes(request), here = body < have - used ? body : have - used;
        if (body > MOST_BODY_BYTES || !drained(client, body - here)) {
            atomic_fetch_add(&failures, 1);
            break;
        }
        bool stays = serve(client, request);
        histogram_add(&answers, now_us() - begun);
        begun = 0;
        if (!stays)
            break;
        have -= used + here;
        memmove(request, request + used + here, have);
    }
    close(client);
    atomic_fetch_sub(&connections, 1);
    return NULL;
}

static void *listener(void *argument)
{
    int listening = (int)(intptr_t)argument;
    for (;;) {
        int client = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) {
            usleep(10000); /* out of descriptors or memory: an attack, say */
            continue;
        }
        struct timeval patience = {.tv_sec = 5};
        setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        if (atomic_fetch_add(&connections, 1) < MOST_CONNECTIONS &&
            start_thread(connection, (void *)(intptr_t)client))
            continue;
        answer(client, "503 Service Unavailable", "text/plain", "too many connections\n", false);
        close(client);
        atomic_fetch_sub(&connections, 1);
    }
    return NULL;
}

bool http_start(int port)
{
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (bind(listening, (struct sockaddr *)&place, sizeof place) || listen(listening, MOST_CONNECTIONS)) {
        complain("HTTP on port %d: %s", port, strerror(errno));
        close(listening);
        return false;
    }
    return start_thread(listener, (void *)(intptr_t)listening);
}
