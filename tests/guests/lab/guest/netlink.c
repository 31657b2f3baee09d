/*
 * Sends what it gets on standard input to a netlink protocol, and prints the answers as they come.
 *
 * netlink PROTOCOL < requests. Each request is answered to its end (NLMSG_DONE, NLMSG_ERROR)
 * before the next is sent; all must ask for an acknowledgement or for a dump.
 */
#include "lab.h"
#include <linux/netlink.h>
#include <sys/socket.h>

static char requests[1 << 20], answer[1 << 18];

/* Whether an answer is the last one to its request. */
static int last(ssize_t size)
{
	for (struct nlmsghdr *it = (void *)answer; NLMSG_OK(it, size); it = NLMSG_NEXT(it, size))
		if (it->nlmsg_type == NLMSG_DONE || it->nlmsg_type == NLMSG_ERROR)
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	int fd = socket(AF_NETLINK, SOCK_RAW, argc > 1 ? atoi(argv[1]) : NETLINK_ROUTE);
	ssize_t left = 0, got;
	struct nlmsghdr *it = (void *)requests;

	while ((got = read(0, requests + left, sizeof requests - left)) > 0)
		left += got;
	for (; NLMSG_OK(it, left); it = NLMSG_NEXT(it, left)) {
		if (send(fd, it, it->nlmsg_len, 0) < 0)
			return 1;
		do {
			got = recv(fd, answer, sizeof answer, 0);
			if (got <= 0 || write(1, answer, got) != got)
				return 1;
		} while (!last(got));
	}
	return 0;
}
