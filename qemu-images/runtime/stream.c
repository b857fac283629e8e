/* Stream server: constant-rate UDP to every client that asks. Packet for packet what
 * twin/emulation/dataplane/app_stream.py does, so that a service can move between the two while users watch.
 *
 * Times in packets are the host's CLOCK_MONOTONIC, which the host has told us (stream_clock); everything else runs by
 * our own clock, which stands still while the partition is suspended.
 */
#define _GNU_SOURCE
#include "vnf.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/rtnetlink.h>
#include <math.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 5001, ECHO_PORT = 5007, MOST_FLOWS = 256, MOST_PLACES = 16, BATCH = 64 };
enum { HEAD_BYTES = 28, IP_UDP_BYTES = 28, NAME_BYTES = 255, MOST_PAYLOAD = 65507, DATA = 1 };

static const double most_rate_bps = 10e9;
static const uint64_t wake_ns = 1000000, ahead_ns = 100000, late_ns = 100000000;
static const uint64_t silence_ns = 3000000000u, expire_ns = 500000000u;

struct flow {
    char name[NAME_BYTES + 1];
    uint8_t name_bytes;
    struct in_addr local; /* where it was asked: the answers come from there */
    struct sockaddr_in peer;
    double rate;
    uint32_t packet_bytes;
    uint64_t started_ns, sequence; /* started: the host's clock */
    bool paced;
    double gap_ns, due_ns;
    uint64_t left; /* packets until another server goes on; UINT64_MAX: no end */
    uint64_t heard_ns, packets, bytes, errors;
};

enum mode { OFF, HOLD, GO, GONE }; /* HOLD: questions wait; GONE: another server answers them */

/* An address beside the guest's own, at which a service was before it moved here. */
struct place {
    struct in_addr address;
    enum mode mode;
};

struct waiting {
    struct question asked;
    struct in_addr local;
    struct sockaddr_in peer;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct flow *flows;
static int count_of_flows;
static enum mode mode; /* of the guest's own address: OFF or GO */
static struct place places[MOST_PLACES];
static int count_of_places;
static struct waiting *queue;
static int count_of_waiting;
static int questions = -1, nudge = -1;
static unsigned long long malformed;
static atomic_llong offset_ns;
static atomic_bool clock_known;
static uint64_t draw_state;

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t host_ns(uint64_t ours_ns) { return ours_ns + (uint64_t)atomic_load(&offset_ns); }

const char *stream_clock(const char *value)
{
    char *end;
    errno = 0;
    long long offset = strtoll(value, &end, 10);
    if (end == value || *end || errno)
        return "must be nanoseconds from the guest's clock to the host's";
    offset_ns = offset;
    clock_known = true;
    return NULL;
}

/* Evenly in [0, 1); xorshift64*, good enough for the phase of a stream. */
static double draw(void)
{
    draw_state ^= draw_state >> 12;
    draw_state ^= draw_state << 25;
    draw_state ^= draw_state >> 27;
    return (double)(draw_state * 2685821657736338717u >> 11) / 9007199254740992.0;
}

/* --- packets ------------------------------------------------------------------------------------ */

static void put_be64(uint8_t *at, uint64_t value)
{
    for (int i = 7; i >= 0; i--, value >>= 8)
        at[i] = (uint8_t)value;
}

static void send_packet(struct flow *flow)
{
    static uint8_t data[MOST_PAYLOAD]; /* zeros behind the head; only our one thread sends */
    memcpy(data, "TB", 2);
    data[2] = DATA;
    data[3] = flow->name_bytes;
    put_be64(data + 4, flow->started_ns);
    put_be64(data + 12, flow->sequence++);
    put_be64(data + 20, host_ns(now_ns()));
    memcpy(data + HEAD_BYTES, flow->name, flow->name_bytes);
    flow->packets++;
    flow->bytes += flow->packet_bytes;
    if (!datagram_send(questions, data, flow->packet_bytes - IP_UDP_BYTES, flow->local, &flow->peer))
        flow->errors++;
    memset(data + HEAD_BYTES, 0, flow->name_bytes);
}

/* --- flows -------------------------------------------------------------------------------------- */

static struct flow *known(const char *name)
{
    for (int i = 0; i < count_of_flows; i++)
        if (!strcmp(flows[i].name, name))
            return &flows[i];
    return NULL;
}

static struct flow *made(const char *name)
{
    if (count_of_flows == MOST_FLOWS)
        return NULL;
    struct flow *flow = &flows[count_of_flows++];
    memset(flow, 0, sizeof *flow);
    strcpy(flow->name, name);
    flow->name_bytes = (uint8_t)strlen(name);
    flow->left = UINT64_MAX;
    return flow;
}

/* The packets of a new life: numbered from 0. */
static void renew(struct flow *flow, uint32_t packet_bytes)
{
    flow->packet_bytes = packet_bytes;
    flow->started_ns = host_ns(now_ns());
    flow->sequence = 0;
}

static void set_rate(struct flow *flow, double rate)
{
    if (rate == flow->rate && flow->paced)
        return;
    flow->rate = rate;
    flow->paced = rate > 0;
    if (flow->paced) {
        flow->gap_ns = 1e9 / (rate / 8 / flow->packet_bytes);
        flow->due_ns = (double)now_ns() + draw() * flow->gap_ns;
    }
}

static void heed(const struct question *asked, struct in_addr local, const struct sockaddr_in *peer)
{
    struct flow *flow = known(asked->flow);
    if (asked->stop) {
        if (flow)
            set_rate(flow, 0);
        return;
    }
    bool wrong = asked->rate < 0 || asked->rate > most_rate_bps || asked->packet_bytes > MOST_PAYLOAD ||
                 asked->packet_bytes < IP_UDP_BYTES + HEAD_BYTES + (double)strlen(asked->flow);
    uint32_t packet_bytes = wrong ? 0 : (uint32_t)asked->packet_bytes;
    if (wrong || (!flow && !(flow = made(asked->flow)))) {
        malformed++;
        return;
    }
    if (flow->packet_bytes != packet_bytes || !flow->paced)
        renew(flow, packet_bytes);
    flow->local = local;
    flow->peer = *peer;
    flow->heard_ns = now_ns();
    set_rate(flow, asked->rate);
}

static struct place *place_of(struct in_addr address)
{
    for (int i = 0; i < count_of_places; i++)
        if (places[i].address.s_addr == address.s_addr)
            return &places[i];
    return NULL;
}

/* Kept until its address is served; of each flow the last one. */
static void keep(const struct question *asked, struct in_addr local, const struct sockaddr_in *peer)
{
    int at = 0;
    while (at < count_of_waiting && strcmp(queue[at].asked.flow, asked->flow))
        at++;
    if (at == MOST_FLOWS)
        return; /* it will be asked again */
    queue[at] = (struct waiting){*asked, local, *peer};
    if (at == count_of_waiting)
        count_of_waiting++;
}

static void read_questions(void)
{
    char data[4096];
    for (int i = 0; i < BATCH; i++) {
        struct sockaddr_in peer;
        struct in_addr local;
        ssize_t size = datagram_take(questions, data, sizeof data - 1, MSG_DONTWAIT, &local, &peer);
        if (size < 0 && errno == EAGAIN)
            return;
        struct place *place = place_of(local);
        enum mode here = place ? place->mode : mode;
        if (size < 0 || here == OFF || here == GONE)
            continue; /* a client is gone, or another server answers */
        data[size] = 0;
        struct question asked;
        if (memchr(data, 0, (size_t)size) || !question_parse(data, &asked))
            malformed++;
        else if (here == HOLD)
            keep(&asked, local, &peer);
        else
            heed(&asked, local, &peer);
    }
}

static void answer_waiting(void)
{
    int kept = 0;
    for (int i = 0; i < count_of_waiting; i++) {
        struct place *place = place_of(queue[i].local);
        if (place && place->mode == HOLD)
            queue[kept++] = queue[i];
        else if (place && place->mode == GO)
            heed(&queue[i].asked, queue[i].local, &queue[i].peer);
    }
    count_of_waiting = kept;
}

static void forget(struct flow *flow) { *flow = flows[--count_of_flows]; }

/* Send what is due; the time of the next wake-up, at most one per millisecond however many packets are due. */
static double play(void)
{
    static uint64_t woken_ns, expired_ns;
    uint64_t now = now_ns();
    double next = (double)(now + expire_ns);
    bool expiring = now - expired_ns >= expire_ns;
    if (expiring)
        expired_ns = now;
    bool early = now < woken_ns + wake_ns;
    if (!early)
        woken_ns = now;
    for (int i = 0; i < count_of_flows; i++) {
        struct flow *flow = &flows[i];
        if (expiring && flow->paced && flow->left == UINT64_MAX && now - flow->heard_ns > silence_ns)
            set_rate(flow, 0);
        while (!early && flow->paced && flow->due_ns <= (double)(now + ahead_ns)) {
            send_packet(flow);
            if ((double)now - flow->due_ns > (double)late_ns)
                flow->due_ns = (double)now;
            flow->due_ns += flow->gap_ns;
            if (flow->left != UINT64_MAX && --flow->left == 0)
                flow->paced = false;
        }
        if (!flow->left)
            forget(&flows[i--]);
        else if (flow->paced && flow->due_ns < next)
            next = flow->due_ns;
    }
    return next > (double)(woken_ns + wake_ns) ? next : (double)(woken_ns + wake_ns);
}

static void *serve(void *argument)
{
    (void)argument;
    for (;;) {
        pthread_mutex_lock(&lock);
        double next = play();
        struct pollfd waiting[2] = {{nudge, POLLIN, 0}, {questions, POLLIN, 0}};
        pthread_mutex_unlock(&lock);
        double wait = next - (double)now_ns();
        uint64_t wait_ns = wait > 0 ? (uint64_t)wait : 0;
        struct timespec patience = {(time_t)(wait_ns / 1000000000u), (long)(wait_ns % 1000000000u)};
        if (ppoll(waiting, 2, &patience, NULL) <= 0)
            continue;
        eventfd_t ignored;
        if (waiting[0].revents)
            eventfd_read(nudge, &ignored);
        if (waiting[1].revents) {
            pthread_mutex_lock(&lock);
            read_questions();
            pthread_mutex_unlock(&lock);
        }
    }
    return NULL;
}

/* --- addresses ---------------------------------------------------------------------------------- */

static bool change_address(struct in_addr address, bool add)
{
    struct {
        struct nlmsghdr head;
        struct ifaddrmsg message;
        struct rtattr attribute;
        struct in_addr address;
    } request = {
        .head = {sizeof request, add ? RTM_NEWADDR : RTM_DELADDR,
                 (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | (add ? NLM_F_CREATE | NLM_F_REPLACE : 0)), 1, 0},
        .message = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = if_nametoindex("eth0")},
        .attribute = {RTA_LENGTH(sizeof(struct in_addr)), IFA_LOCAL},
        .address = address,
    };
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[256];
    } reply = {0};
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    bool done = netlink >= 0 && send(netlink, &request, sizeof request, 0) > 0 &&
                recv(netlink, &reply, sizeof reply, 0) > 0 && reply.head.nlmsg_type == NLMSG_ERROR &&
                (reply.error.error == 0 || reply.error.error == -EEXIST);
    if (netlink >= 0)
        close(netlink);
    return done;
}

/* Set the mode of addresses ("A,B"), or let go of them (OFF). NULL, or what is wrong. */
static const char *set_places(char *list, enum mode wanted)
{
    char *rest = NULL;
    if (!*list)
        return "needs addresses";
    for (char *one = strtok_r(list, ",", &rest); one; one = strtok_r(NULL, ",", &rest)) {
        struct in_addr address;
        if (!inet_aton(one, &address))
            return "must have IPv4 addresses";
        struct place *place = place_of(address);
        if (!place && (wanted == HOLD || wanted == GO)) {
            if (count_of_places == MOST_PLACES)
                return "has at most 16 addresses";
            if (!change_address(address, true))
                return "address was refused by the guest's kernel";
            place = &places[count_of_places++];
            place->address = address;
        }
        if (place)
            place->mode = wanted;
        if (place && wanted == OFF) {
            change_address(address, false);
            *place = places[--count_of_places];
        }
    }
    answer_waiting();
    return NULL;
}

/* --- settings ----------------------------------------------------------------------------------- */

static const char *open_up(void)
{
    if (nudge >= 0)
        return NULL;
    if (!clock_known)
        return "needs the clock first";
    flows = calloc(MOST_FLOWS, sizeof *flows);
    queue = calloc(MOST_FLOWS, sizeof *queue);
    questions = datagram_socket(PORT);
    nudge = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    draw_state = host_ns(now_ns()) | 1;
    if (flows && queue && questions >= 0 && nudge >= 0 && echo_start(ECHO_PORT) && start_thread(serve, NULL))
        return NULL;
    close(questions); /* -1 is refused, harmlessly */
    close(nudge);
    questions = nudge = -1;
    free(flows);
    free(queue);
    flows = NULL;
    queue = NULL;
    return "a port is in use, or memory is short";
}

/* %XX in a name stands for that octet. */
static bool unescaped(const char *from, char *name)
{
    size_t size = 0;
    for (; *from; from++) {
        unsigned octet = (unsigned char)*from;
        if (octet == '%') {
            if (sscanf(from + 1, "%2x", &octet) != 1 || !from[1] || !from[2] || !octet)
                return false;
            from += 2;
        }
        if (size == NAME_BYTES)
            return false;
        name[size++] = (char)octet;
    }
    name[size] = 0;
    return size > 0;
}

/* NAME LOCAL PEER PORT RATE PACKET_BYTES STARTED_NS SEQUENCE DUE_NS PACKETS BYTES ERRORS, times by the host's clock */
static const char *adopt(const char *row)
{
    static const char *rule = "adopt must be NAME LOCAL PEER PORT RATE PACKET_BYTES STARTED_NS SEQUENCE DUE_NS "
                              "PACKETS BYTES ERRORS";
    char escaped[3 * NAME_BYTES + 1], name[NAME_BYTES + 1], local[16], peer[16], more;
    unsigned port;
    double rate;
    unsigned packet_bytes;
    unsigned long long started, sequence, due, packets, bytes, errors;
    struct in_addr local_address, peer_address;
    if (sscanf(row, "%765s %15s %15s %u %lf %u %llu %llu %llu %llu %llu %llu %c", escaped, local, peer, &port, &rate,
               &packet_bytes, &started, &sequence, &due, &packets, &bytes, &errors, &more) != 12 ||
        !unescaped(escaped, name) || !inet_aton(local, &local_address) || !inet_aton(peer, &peer_address) || !port ||
        port > 65535 || !(rate >= 0) || rate > most_rate_bps || packet_bytes > MOST_PAYLOAD ||
        packet_bytes < IP_UDP_BYTES + HEAD_BYTES + strlen(name))
        return rule;
    struct flow *flow = known(name);
    if (!flow && !(flow = made(name)))
        return "serves at most 256 flows";
    flow->local = local_address;
    flow->peer = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = peer_address};
    flow->rate = rate;
    flow->packet_bytes = packet_bytes;
    flow->started_ns = started;
    flow->sequence = sequence;
    flow->packets = packets;
    flow->bytes = bytes;
    flow->errors = errors;
    flow->heard_ns = now_ns();
    flow->left = UINT64_MAX;
    flow->paced = rate > 0;
    if (flow->paced) {
        flow->gap_ns = 1e9 / (rate / 8 / packet_bytes);
        flow->due_ns = (double)(due - (uint64_t)atomic_load(&offset_ns));
    }
    return NULL;
}

const char *stream_set(const char *value)
{
    char copy[1024];
    if (strlen(value) >= sizeof copy)
        return "is too long";
    strcpy(copy, value);
    char *rest = copy + strcspn(copy, " ");
    if (*rest)
        *rest++ = 0;
    pthread_mutex_lock(&lock);
    const char *wrong = strcmp(copy, "off") ? open_up() : NULL;
    if (wrong) {
        /* not before the clock */
    } else if (!strcmp(copy, "off")) {
        mode = OFF;
        count_of_flows = count_of_waiting = 0;
        while (count_of_places)
            change_address(places[--count_of_places].address, false);
    } else if (!strcmp(copy, "go") && !*rest) {
        mode = GO;
    } else if (!strcmp(copy, "go")) {
        wrong = set_places(rest, GO);
    } else if (!strcmp(copy, "hold")) {
        wrong = set_places(rest, HOLD);
    } else if (!strcmp(copy, "drop")) {
        wrong = set_places(rest, OFF);
    } else if (!strcmp(copy, "adopt")) {
        wrong = adopt(rest);
    } else {
        wrong = "must be off, go [ADDRESS,...], hold ADDRESS,..., drop ADDRESS,... or adopt ...";
    }
    if (nudge >= 0)
        eventfd_write(nudge, 1);
    pthread_mutex_unlock(&lock);
    return wrong;
}

static void put_name(struct text *out, const char *name)
{
    for (; *name; name++) {
        unsigned octet = (unsigned char)*name;
        if (octet > 32 && octet < 127 && octet != '%' && octet != '"' && octet != '\\')
            put(out, "%c", octet);
        else
            put(out, "%%%02x", octet);
    }
}

static void put_row(struct text *out, const struct flow *flow, const char *comma)
{
    char local[16], peer[16];
    inet_ntop(AF_INET, &flow->local, local, sizeof local);
    inet_ntop(AF_INET, &flow->peer.sin_addr, peer, sizeof peer);
    put(out, "%s[\"", comma);
    put_name(out, flow->name);
    put(out, "\", \"%s\", \"%s\", %u, %.17g, %u, %llu, %llu, %llu, %llu, %llu, %llu]", local, peer,
        ntohs(flow->peer.sin_port), flow->paced ? flow->rate : 0, flow->packet_bytes,
        (unsigned long long)flow->started_ns, (unsigned long long)flow->sequence,
        (unsigned long long)(flow->paced ? host_ns((uint64_t)flow->due_ns) : 0), (unsigned long long)flow->packets,
        (unsigned long long)flow->bytes, (unsigned long long)flow->errors);
}

/* Send what is due before a time of the host's clock at these addresses, and no more; the flows as they will be then. */
void stream_release(struct text *out, const char *value)
{
    char *rest;
    unsigned long long at = strtoull(value, &rest, 10);
    char list[512];
    snprintf(list, sizeof list, "%s", *rest == ' ' ? rest + 1 : "");
    pthread_mutex_lock(&lock);
    double end = (double)(at - (unsigned long long)atomic_load(&offset_ns));
    const char *wrong = mode == OFF && !count_of_places ? "nothing is served" : set_places(list, GONE), *comma = "";
    put(out, wrong ? "{\"type\": \"refused\", \"reason\": \"%s\"}" : "{\"type\": \"released\", \"flows\": [",
        wrong);
    for (int i = 0; i < count_of_flows && !wrong; i++) {
        struct flow *flow = &flows[i];
        struct place *place = place_of(flow->local);
        if (!place || place->mode != GONE || flow->left != UINT64_MAX)
            continue;
        uint64_t left = flow->paced && flow->due_ns < end ? (uint64_t)ceil((end - flow->due_ns) / flow->gap_ns) : 0;
        struct flow then = *flow;
        then.sequence += left;
        then.due_ns += (double)left * flow->gap_ns;
        then.packets += left;
        then.bytes += left * flow->packet_bytes;
        put_row(out, &then, comma);
        comma = ", ";
        flow->left = left;
        if (!left)
            forget(&flows[i--]);
    }
    if (!wrong)
        put(out, "]}");
    pthread_mutex_unlock(&lock);
}

void stream_flows(struct text *out, const char *value)
{
    (void)value;
    const char *comma = "";
    pthread_mutex_lock(&lock);
    put(out, "{\"type\": \"flows\", \"malformed\": %llu, \"flows\": [", malformed);
    for (int i = 0; i < count_of_flows; i++)
        if (flows[i].left == UINT64_MAX) { /* the others are reported by who took them over */
            put_row(out, &flows[i], comma);
            comma = ", ";
        }
    put(out, "]}");
    pthread_mutex_unlock(&lock);
}

void stream_time(struct text *out, const char *value)
{
    (void)value;
    put(out, "{\"type\": \"time\", \"ns\": %llu}", (unsigned long long)now_ns());
}

void stream_report(struct text *out)
{
    unsigned long long packets = 0, bytes = 0;
    int active = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < count_of_flows; i++) {
        packets += flows[i].packets;
        bytes += flows[i].bytes;
        active += flows[i].paced;
    }
    put(out, "{\"serving\": %s, \"addresses\": %d, \"flows\": %d, \"active\": %d, \"packets\": %llu, \"bytes\": %llu}",
        mode == GO ? "true" : "false", count_of_places, count_of_flows, active, packets, bytes);
    pthread_mutex_unlock(&lock);
}
