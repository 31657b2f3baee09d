/*
 * A process with sockets of every kind that a socket table must get right; a child shares them.
 *
 * Needs an interface dummy0 with the address 10.99.0.1/16, up: what is sent there goes nowhere.
 * With the argument "closed" it only leaves two connections in TIME_WAIT, which last a minute.
 */
#include "lab.h"
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define MUST(call) must(#call, call)

static int must(const char *call, int result)
{
	if (result < 0)
		fprintf(stderr, "sockets: %s: %m\n", call);
	return result;
}

static struct sockaddr_in v4(const char *address, int port)
{
	struct sockaddr_in found = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, address, &found.sin_addr);
	return found;
}

static struct sockaddr_in6 v6(const char *address, int port)
{
	struct sockaddr_in6 found = { .sin6_family = AF_INET6, .sin6_port = htons(port) };

	inet_pton(AF_INET6, address, &found.sin6_addr);
	return found;
}

static int bound(int family, int type, int protocol, const char *address, int port)
{
	struct sockaddr_in four = v4(address, port);
	struct sockaddr_in6 six = v6(address, port);
	int fd = MUST(socket(family, type, protocol));

	if (family == AF_INET)
		MUST(bind(fd, (struct sockaddr *)&four, sizeof four));
	else
		MUST(bind(fd, (struct sockaddr *)&six, sizeof six));
	return fd;
}

static int connected(int family, int type, const char *address, int port)
{
	struct sockaddr_in four = v4(address, port);
	struct sockaddr_in6 six = v6(address, port);
	int fd = MUST(socket(family, type, 0));

	if (family == AF_INET)
		MUST(connect(fd, (struct sockaddr *)&four, sizeof four));
	else
		MUST(connect(fd, (struct sockaddr *)&six, sizeof six));
	return fd;
}

/* A SYN that nobody stands behind: a request that stays. */
static void half_open(int port)
{
	struct sockaddr_in to = v4("10.99.0.1", port), from = v4("10.99.0.77", 0);
	struct { struct in_addr from, to; uint8_t zero, protocol; uint16_t size; struct tcphdr tcp; }
		sum = { .from = from.sin_addr, .to = to.sin_addr, .protocol = IPPROTO_TCP,
			.size = htons(20) };
	struct { uint8_t head[12]; struct in_addr from, to; struct tcphdr tcp; } __attribute__((packed))
		packet = { .head = { 0x45, 0, 0, 40, 0, 1, 0, 0, 64, IPPROTO_TCP },
			   .from = from.sin_addr, .to = to.sin_addr };
	int fd = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_RAW));
	uint16_t words[sizeof sum / 2];
	uint32_t total = 0;

	sum.tcp.source = htons(4077);
	sum.tcp.dest = htons(port);
	sum.tcp.seq = htonl(77);
	sum.tcp.doff = 5;
	sum.tcp.syn = 1;
	sum.tcp.window = htons(1000);
	memcpy(words, &sum, sizeof sum);
	for (size_t i = 0; i < sizeof sum / 2; i++)
		total += words[i];
	total = (total & 0xffff) + (total >> 16);
	sum.tcp.check = ~(total + (total >> 16));
	packet.tcp = sum.tcp;
	MUST(sendto(fd, &packet, sizeof packet, 0, (struct sockaddr *)&to, sizeof to));
}

static void tcp(void)
{
	struct sockaddr_in nowhere = v4("10.99.0.88", 9);
	int listener = bound(AF_INET, SOCK_STREAM, 0, "0.0.0.0", 7001);
	int listener6 = bound(AF_INET6, SOCK_STREAM, 0, "::", 7002);
	struct sockaddr_in self = v4("127.0.0.1", 7009);
	int mptcp = socket(AF_INET, SOCK_STREAM, 262); /* since 5.6, where it is built */
	int silent, client, server;

	MUST(listen(listener, 8));
	MUST(listen(listener6, 8));
	bind(mptcp, (struct sockaddr *)&self, sizeof self);
	listen(mptcp, 1);
	connected(AF_INET, SOCK_STREAM, "127.0.0.1", 7001);
	accept(listener, NULL, NULL);
	connected(AF_INET6, SOCK_STREAM, "::1", 7002);
	accept(listener6, NULL, NULL);
	connected(AF_INET, SOCK_STREAM, "127.0.0.1", 7002); /* IPv4 in IPv6 */
	accept(listener6, NULL, NULL);
	connected(AF_INET6, SOCK_STREAM, "::ffff:127.0.0.1", 7001);
	accept(listener, NULL, NULL);
	connected(AF_INET, SOCK_STREAM, "127.0.0.1", 7001); /* never accepted: without an owner */
	client = connected(AF_INET, SOCK_STREAM, "127.0.0.1", 7001);
	server = accept(listener, NULL, NULL);
	shutdown(client, SHUT_WR); /* FIN_WAIT2 and CLOSE_WAIT */
	client = connected(AF_INET, SOCK_STREAM, "127.0.0.1", 7001);
	server = accept(listener, NULL, NULL);
	close(client); /* FIN_WAIT2 without a socket */
	client = connected(AF_INET6, SOCK_STREAM, "::1", 7002);
	server = accept(listener6, NULL, NULL);
	close(client);
	close(server); /* TIME_WAIT */
	bound(AF_INET, SOCK_STREAM, 0, "127.0.0.1", 7010); /* does nothing */
	silent = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	connect(silent, (struct sockaddr *)&nowhere, sizeof nowhere);
	half_open(7001);
	half_open(7002);
}

static void closed(void)
{
	int listener = bound(AF_INET, SOCK_STREAM, 0, "127.0.0.1", 7040);

	MUST(listen(listener, 2));
	for (int i = 0; i < 2; i++) {
		int client = connected(AF_INET, SOCK_STREAM, "127.0.0.1", 7040);
		int server = MUST(accept(listener, NULL, NULL));

		close(client);
		close(server);
	}
}

static void datagrams(void)
{
	struct sockaddr_in self = v4("127.0.0.1", 0);
	int fd;

	bound(AF_INET, SOCK_DGRAM, 0, "0.0.0.0", 7003);
	bound(AF_INET6, SOCK_DGRAM, 0, "::", 7004);
	connected(AF_INET, SOCK_DGRAM, "127.0.0.1", 7003);
	connected(AF_INET6, SOCK_DGRAM, "::1", 7004);
	connected(AF_INET6, SOCK_DGRAM, "::ffff:127.0.0.1", 7003);
	socket(AF_INET, SOCK_DGRAM, 0);
	fd = socket(AF_INET, SOCK_DGRAM, 136); /* UDP-Lite, until 7.0 */
	self.sin_port = htons(7005);
	bind(fd, (struct sockaddr *)&self, sizeof self);
	MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	fd = MUST(socket(AF_INET, SOCK_RAW, 253));
	self.sin_port = 0;
	MUST(connect(fd, (struct sockaddr *)&self, sizeof self));
	MUST(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
	fd = MUST(socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP));
	self.sin_port = htons(77);
	MUST(bind(fd, (struct sockaddr *)&self, sizeof self));
}

/* Sockets in which something waits: 7020 to 7022, and a pair of each kind. */
static void queues(void)
{
	int listener = bound(AF_INET, SOCK_STREAM, 0, "127.0.0.1", 7020);
	int client, server, fd, pair[2];
	char text[100] = "";

	MUST(listen(listener, 5));
	client = connected(AF_INET, SOCK_STREAM, "127.0.0.1", 7020);
	server = accept(listener, NULL, NULL);
	MUST(write(client, text, 77));
	MUST(write(server, text, 55));
	MUST(read(client, text, 11));
	for (int i = 0; i < 3; i++) /* wait to be accepted */
		connected(AF_INET, SOCK_STREAM, "127.0.0.1", 7020);
	bound(AF_INET, SOCK_DGRAM, 0, "127.0.0.1", 7021);
	fd = connected(AF_INET, SOCK_DGRAM, "127.0.0.1", 7021);
	MUST(write(fd, text, 33));
	bound(AF_INET6, SOCK_DGRAM, 0, "::1", 7022);
	fd = connected(AF_INET6, SOCK_DGRAM, "::1", 7022);
	MUST(write(fd, text, 33));
	MUST(write(fd, text, 44));
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	MUST(write(pair[0], text, 5));
	MUST(write(pair[0], text, 100));
	MUST(read(pair[1], text, 3));
	socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair);
	MUST(write(pair[0], text, 21));
	MUST(write(pair[0], text, 22));
	socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
	MUST(write(pair[0], text, 61));
	MUST(write(pair[0], text, 62));
}

/* Sockets of somebody else. */
static void of_another_user(void)
{
	MUST(seteuid(4242));
	MUST(listen(bound(AF_INET, SOCK_STREAM, 0, "127.0.0.1", 7030), 3));
	bound(AF_INET6, SOCK_DGRAM, 0, "::1", 7031);
	MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC));
	MUST(seteuid(0));
}

static int named(int type, const char *name, size_t size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = MUST(socket(AF_UNIX, type, 0));

	memcpy(address.sun_path, name, size);
	if (name[0])
		unlink(name);
	MUST(bind(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + size));
	return fd;
}

static void unix_connect(int type, const char *name, size_t size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = MUST(socket(AF_UNIX, type, 0));

	memcpy(address.sun_path, name, size);
	MUST(connect(fd, (struct sockaddr *)&address,
			   offsetof(struct sockaddr_un, sun_path) + size));
}

static void unix_sockets(const char *suffix)
{
	char path[200], longest[108];
	int fd, pair[2];

	snprintf(path, sizeof path, "/tmp/stream-%s", suffix);
	fd = named(SOCK_STREAM, path, strlen(path));
	MUST(listen(fd, 4));
	unix_connect(SOCK_STREAM, path, strlen(path));
	accept(fd, NULL, NULL);
	unix_connect(SOCK_STREAM, path, strlen(path)); /* waits to be accepted */
	snprintf(path, sizeof path, "/tmp/odd \x1b[31m\xff\x01 %s", suffix);
	named(SOCK_DGRAM, path, strlen(path) + 1);
	fd = named(SOCK_SEQPACKET, "\0abstract\x1b\xff\0middle", 18);
	MUST(listen(fd, 1));
	unix_connect(SOCK_SEQPACKET, "\0abstract\x1b\xff\0middle", 18);
	memset(longest, 'l', sizeof longest);
	memcpy(longest, "/tmp/", 5);
	memcpy(longest + 5, suffix, strlen(suffix));
	named(SOCK_DGRAM, longest, sizeof longest);
	longest[0] = 0;
	named(SOCK_DGRAM, longest, sizeof longest);
	named(SOCK_DGRAM, "", 0); /* the kernel gives it a name */
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
	socket(AF_UNIX, SOCK_STREAM, 0);
	dup(pair[0]);
}

static void others(void)
{
	struct sockaddr_nl route = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	struct sockaddr_nl uevent = { .nl_family = AF_NETLINK, .nl_pid = 0x80000007 };
	struct sockaddr_ll link = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };

	MUST(bind(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), (struct sockaddr *)&route,
			sizeof route));
	MUST(bind(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT),
			(struct sockaddr *)&uevent, sizeof uevent));
	MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC)); /* without a port id */
	link.sll_ifindex = if_nametoindex("dummy0");
	MUST(bind(socket(AF_PACKET, SOCK_RAW, 0), (struct sockaddr *)&link, sizeof link));
	MUST(socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_IPV6)));
	socket(AF_VSOCK, SOCK_STREAM, 0);
}

int main(int argc, char **argv)
{
	(void)argc;
	if (!strcmp(argv[1], "closed")) {
		closed();
		return 0;
	}
	tcp();
	datagrams();
	unix_sockets(argv[1]);
	others();
	queues();
	of_another_user();
	if (fork() == 0) {
		for (;;)
			pause();
	}
	printf("ready\n");
	fflush(stdout);
	close(1);
	for (;;)
		pause();
}
