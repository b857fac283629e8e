/* UDP echo: what arrives goes back, from the address that it came to, so that a user's round trip to this guest can
 * be measured. */
#define _GNU_SOURCE
#include "vnf.h"
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

ssize_t datagram_take(int socket, void *data, size_t room, int flags, struct in_addr *local, struct sockaddr_in *peer)
{
    struct iovec part = {data, room};
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(struct in_pktinfo))];
    } control;
    struct msghdr message = {peer, sizeof *peer, &part, 1, control.room, sizeof control.room, 0};
    ssize_t size = recvmsg(socket, &message, flags);
    local->s_addr = 0;
    if (size >= 0)
        for (struct cmsghdr *one = CMSG_FIRSTHDR(&message); one; one = CMSG_NXTHDR(&message, one))
            if (one->cmsg_level == IPPROTO_IP && one->cmsg_type == IP_PKTINFO) {
                struct in_pktinfo info;
                memcpy(&info, CMSG_DATA(one), sizeof info);
                *local = info.ipi_addr;
            }
    return size;
}

bool datagram_send(int socket, const void *data, size_t size, struct in_addr local, struct sockaddr_in *peer)
{
    struct iovec part = {(void *)data, size};
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(struct in_pktinfo))];
    } control = {0};
    struct msghdr message = {peer, sizeof *peer, &part, 1, control.room, sizeof control.room, 0};
    struct cmsghdr *from = CMSG_FIRSTHDR(&message);
    from->cmsg_level = IPPROTO_IP;
    from->cmsg_type = IP_PKTINFO;
    from->cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo));
    struct in_pktinfo source = {.ipi_spec_dst = local};
    memcpy(CMSG_DATA(from), &source, sizeof source);
    return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

int datagram_socket(int port)
{
    int made = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    setsockopt(made, IPPROTO_IP, IP_PKTINFO, &(int){1}, sizeof(int));
    if (bind(made, (struct sockaddr *)&place, sizeof place) == 0)
        return made;
    complain("UDP port %d: %s", port, strerror(errno));
    close(made);
    return -1;
}

static void *echo(void *argument)
{
    int port = (int)(intptr_t)argument;
    static char data[16384];
    for (;;) {
        struct sockaddr_in peer;
        struct in_addr local;
        ssize_t size = datagram_take(port, data, sizeof data, 0, &local, &peer);
        if (size >= 0)
            datagram_send(port, data, (size_t)size, local, &peer);
        else
            usleep(10000); /* an ICMP error about an earlier answer, or no memory */
    }
    return NULL;
}

/* Once: there is one echo, whoever asks for it. */
bool echo_start(int port)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int running;
    pthread_mutex_lock(&lock);
    if (!running) {
        int made = datagram_socket(port);
        if (made >= 0 && start_thread(echo, (void *)(intptr_t)made))
            running = port;
    }
    bool there = running == port;
    pthread_mutex_unlock(&lock);
    return there;
}
