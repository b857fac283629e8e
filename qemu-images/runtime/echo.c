/* UDP echo: what arrives goes back, so that a user's round trip to this guest can be measured. */
#define _GNU_SOURCE
#include "vnf.h"
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void *echo(void *argument)
{
    int port = (int)(intptr_t)argument;
    char data[2048];
    for (;;) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t size = recvfrom(port, data, sizeof data, 0, (struct sockaddr *)&from, &length);
        if (size >= 0)
            sendto(port, data, (size_t)size, MSG_DONTWAIT, (struct sockaddr *)&from, length);
        else
            usleep(10000); /* an ICMP error about an earlier answer, or no memory */
    }
    return NULL;
}

bool echo_start(int port)
{
    int listening = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (bind(listening, (struct sockaddr *)&place, sizeof place)) {
        complain("echo on port %d: %s", port, strerror(errno));
        close(listening);
        return false;
    }
    return start_thread(echo, (void *)(intptr_t)listening);
}
