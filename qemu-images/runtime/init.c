/* First process of a partition: brings the guest up in the order that answers soonest. */
#define _GNU_SOURCE
#include "vnf.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

char guest_name[64] = "partition";
static char command_line[4096];

void put(struct text *out, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int wanted = vsnprintf(out->at, out->room, format, arguments);
    va_end(arguments);
    if (wanted < 0 || (size_t)wanted >= out->room) {
        out->full = true;
        return;
    }
    out->at += wanted;
    out->room -= (size_t)wanted;
}

void complain(const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    printf("twinbed: %s\n", line);
}

uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

bool start_thread(void *(*body)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int error = pthread_create(&thread, &attributes, body, argument);
    pthread_attr_destroy(&attributes);
    if (error)
        complain("cannot start a thread: %s", strerror(error));
    return error == 0;
}

/* The value of twinbed.KEY on the kernel command line, in `value`; false when it is not there. */
static bool setting(const char *key, char *value, size_t room)
{
    char wanted[64];
    size_t length = (size_t)snprintf(wanted, sizeof wanted, "twinbed.%s=", key);
    for (const char *at = command_line; (at = strstr(at, wanted)); at += length) {
        if (at != command_line && at[-1] != ' ')
            continue;
        size_t count = strcspn(at + length, " \n");
        if (count >= room) {
            complain("%s is longer than %zu characters", key, room - 1);
            return false;
        }
        memcpy(value, at + length, count);
        value[count] = 0;
        return true;
    }
    return false;
}

static void read_command_line(void)
{
    int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t count = file < 0 ? -1 : read(file, command_line, sizeof command_line - 1);
    command_line[count > 0 ? count : 0] = 0;
    if (file >= 0)
        close(file);
}

/* A kernel of the user's own may have a module built in, or want another version of it: both only show here. */
static void load_modules(void)
{
    FILE *order = fopen("/modules/order", "re");
    char name[128], path[160];
    while (order && fscanf(order, "%127s", name) == 1) {
        snprintf(path, sizeof path, "/modules/%s", name);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0 || (syscall(SYS_finit_module, file, "", 0) < 0 && errno != EEXIST))
            complain("module %s: %s", name, strerror(errno));
        if (file >= 0)
            close(file);
    }
    if (order)
        fclose(order);
}

static void set_address(struct sockaddr *place, struct in_addr address)
{
    struct sockaddr_in internet = {.sin_family = AF_INET, .sin_addr = address};
    memcpy(place, &internet, sizeof internet);
}

static void interface_up(int control, const char *name)
{
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(control, SIOCSIFFLAGS, &request))
        complain("interface %s: %s", name, strerror(errno));
}

static void set_network(void)
{
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    interface_up(control, "lo");
    char value[64];
    if (setting("ip", value, sizeof value)) {
        char *slash = strchr(value, '/');
        int length = slash ? atoi(slash + 1) : 24;
        if (slash)
            *slash = 0;
        struct in_addr address, mask = {htonl(length ? ~0u << (32 - length) : 0)};
        if (length < 0 || length > 32 || !inet_aton(value, &address)) {
            complain("ip must be ADDRESS/LENGTH, got %s", value);
        } else {
            struct ifreq request = {0};
            strcpy(request.ifr_name, "eth0");
            set_address(&request.ifr_addr, address);
            if (ioctl(control, SIOCSIFADDR, &request))
                complain("address of eth0: %s", strerror(errno));
            set_address(&request.ifr_netmask, mask);
            ioctl(control, SIOCSIFNETMASK, &request);
            interface_up(control, "eth0");
        }
    }
    struct in_addr gateway;
    if (setting("gateway", value, sizeof value) && inet_aton(value, &gateway)) {
        struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
        set_address(&route.rt_gateway, gateway);
        set_address(&route.rt_dst, (struct in_addr){0});
        set_address(&route.rt_genmask, (struct in_addr){0});
        if (ioctl(control, SIOCADDRT, &route))
            complain("route through %s: %s", value, strerror(errno));
    }
    close(control);
}

/* Go on as the first process of a root file system of the user's own. Returns only when that cannot be. */
static void become(const char *device)
{
    mkdir("/root", 0755);
    for (int tries = 0; tries < 500 && access(device, F_OK); tries++)
        usleep(2000);
    if (mount(device, "/root", "ext4", 0, NULL)) {
        complain("root file system %s: %s", device, strerror(errno));
        return;
    }
    mount("/dev", "/root/dev", NULL, MS_MOVE, NULL);
    umount2("/proc", MNT_DETACH);
    umount2("/sys", MNT_DETACH);
    if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        complain("root file system %s: %s", device, strerror(errno));
    /* This program may be the init there too, and must not go over again. */
    setenv("TWINBED_ROOT", device, 1);
    execl("/sbin/init", "/sbin/init", (char *)NULL);
    complain("root file system %s: /sbin/init: %s", device, strerror(errno));
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    read_command_line();
    setting("name", guest_name, sizeof guest_name);
    load_modules();
    char value[1024];
    if (!getenv("TWINBED_ROOT") && setting("root", value, sizeof value)) {
        become(value);
        for (;;)
            pause();
    }
    set_network();

    int port = setting("http", value, sizeof value) ? atoi(value) : 80;
    bool answering = port && http_start(port);
    int echo = setting("echo", value, sizeof value) ? atoi(value) : 0;
    if (echo)
        echo_start(echo);
    const char *wrong = NULL;
    if (setting("metrics_ms", value, sizeof value) && (wrong = channel_set_period(value)))
        complain("metrics_ms: %s", wrong);
    if (setting("relay", value, sizeof value) && (wrong = relay_set(value)))
        complain("relay: %s", wrong);
    char hello[256];
    snprintf(hello, sizeof hello, "{\"type\": \"hello\", \"runtime\": 1, \"http_port\": %d, \"boot_us\": %llu}",
             answering ? port : 0, (unsigned long long)now_us());
    channel_start(hello);
    /* Last: finding out how fast this processor is takes longer than all of the above. */
    if (setting("load", value, sizeof value) && (wrong = load_set(value)))
        complain("load: %s", wrong);
    for (;;)
        if (wait(NULL) < 0)
            pause();
}
