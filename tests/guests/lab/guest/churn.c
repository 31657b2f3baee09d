/*
 * churn: what tables show comes and goes all the time, until the file /tmp/churn/run is gone:
 * mounts, control groups, containers, interfaces with addresses, routes and neighbours, namespaces,
 * eBPF objects, timers, credentials, kernel parameters, log records, modules, login records.
 *
 * All of it can be told from what was there before: names begin with "churn" (ids of containers
 * with "c0ffee"), addresses are of 10.99.0.0/16, user ids are 61000 to 61099. Only namespaces have
 * no name; their inodes are lines "ns INODE" of /tmp/churn/log.
 */
#include "lab.h"
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <utmp.h>

static int log_fd;

static int going_on(void)
{
	return access("/tmp/churn/run", F_OK) == 0;
}

static void put(const char *path, const char *format, ...)
{
	char text[256];
	va_list values;
	int size, fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

	va_start(values, format);
	size = vsnprintf(text, sizeof text, format, values);
	va_end(values);
	if (fd >= 0) {
		if (write(fd, text, size) < 0)
			errno = 0; /* as a group that is being removed: the next round does better */
		close(fd);
	}
}

static void finish(pid_t pid)
{
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
}

static pid_t resting(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_NAME, "churn-rests");
		for (;;)
			pause();
	}
	return pid;
}

static void mounts(unsigned n)
{
	char name[64], path[64];

	if (n == 0)
		unshare(CLONE_NEWNS);
	snprintf(name, sizeof name, "churn-%u", n);
	snprintf(path, sizeof path, "/tmp/churn/m%d", getpid());
	mkdir(path, 0755);
	mount(name, path, "tmpfs", n & 1 ? MS_NOEXEC : MS_RDONLY | MS_NOSUID, "");
	mount(path, path, NULL, MS_BIND, NULL);
	usleep(500);
	umount2(path, MNT_DETACH);
	umount2(path, MNT_DETACH);
}

static void here_mounts(unsigned n)
{
	mounts(n + 1); /* in the namespace of everybody */
}

static void in_group(const char *path)
{
	char file[160];
	pid_t pid = resting();

	mkdir(path, 0755);
	snprintf(file, sizeof file, "%s/cgroup.procs", path);
	put(file, "%d", pid);
	usleep(1000);
	finish(pid);
	rmdir(path);
}

static void groups(unsigned n)
{
	char path[160];

	snprintf(path, sizeof path, "/sys/fs/cgroup/churn-%u", n);
	in_group(path);
}

static void containers(unsigned n)
{
	char path[160];

	mkdir("/sys/fs/cgroup/docker", 0755);
	snprintf(path, sizeof path, "/sys/fs/cgroup/docker/c0ffee%058x", n);
	in_group(path);
}

struct message {
	struct nlmsghdr head;
	char body[256];
};

static void attribute(struct message *message, int kind, const void *data, int size)
{
	struct rtattr *at = (void *)((char *)message + NLMSG_ALIGN(message->head.nlmsg_len));

	at->rta_type = kind;
	at->rta_len = RTA_LENGTH(size);
	if (size)
		memcpy(RTA_DATA(at), data, size);
	message->head.nlmsg_len = NLMSG_ALIGN(message->head.nlmsg_len) + RTA_ALIGN(at->rta_len);
}

static struct message message(int kind, int flags, const void *body, int size)
{
	struct message made = { .head = { .nlmsg_len = NLMSG_LENGTH(size), .nlmsg_type = kind,
					  .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags } };

	memcpy(made.body, body, size);
	return made;
}

static void talk(struct message *message)
{
	static int fd = -1;
	char answer[4096];

	if (fd < 0)
		fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (send(fd, message, message->head.nlmsg_len, 0) > 0)
		recv(fd, answer, sizeof answer, 0);
}

static void network(unsigned n)
{
	struct ifinfomsg link = { .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
	struct ifaddrmsg address = { .ifa_family = AF_INET, .ifa_prefixlen = 24 };
	struct rtmsg route = { .rtm_family = AF_INET, .rtm_dst_len = 32, .rtm_table = RT_TABLE_MAIN,
			       .rtm_protocol = RTPROT_STATIC, .rtm_scope = RT_SCOPE_LINK,
			       .rtm_type = RTN_UNICAST };
	struct ndmsg neighbour = { .ndm_family = AF_INET, .ndm_state = NUD_PERMANENT };
	unsigned char mac[6] = { 2, 0x99, 0, 0, 0, n };
	char name[IFNAMSIZ];
	struct { struct rtattr at; char kind[8]; } info = { { 9, IFLA_INFO_KIND }, "dummy" };
	struct message made;
	in_addr_t at;
	int index;

	snprintf(name, sizeof name, "churn%u", n % 1000);
	made = message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof link);
	attribute(&made, IFLA_IFNAME, name, strlen(name) + 1);
	attribute(&made, IFLA_LINKINFO, &info, RTA_LENGTH(5));
	talk(&made);
	index = if_nametoindex(name);
	if (!index)
		return;
	address.ifa_index = neighbour.ndm_ifindex = index;
	made = message(RTM_NEWADDR, NLM_F_CREATE, &address, sizeof address);
	at = htonl(0x0a630001 + ((n & 0xff) << 8));
	attribute(&made, IFA_LOCAL, &at, 4);
	attribute(&made, IFA_ADDRESS, &at, 4);
	talk(&made);
	for (int i = 0; i < 20; i++) {
		at = htonl(0x0a630010 + i + ((n & 0xff) << 8));
		made = message(RTM_NEWROUTE, NLM_F_CREATE, &route, sizeof route);
		attribute(&made, RTA_DST, &at, 4);
		attribute(&made, RTA_OIF, &index, 4);
		talk(&made);
		made = message(RTM_NEWNEIGH, NLM_F_CREATE, &neighbour, sizeof neighbour);
		attribute(&made, NDA_DST, &at, 4);
		attribute(&made, NDA_LLADDR, mac, 6);
		talk(&made);
	}
	link.ifi_index = index;
	made = message(RTM_DELLINK, 0, &link, sizeof link);
	talk(&made);
}

/* Says which namespaces this process is in. */
static void say_spaces(void)
{
	static const char *const kinds[] = { "net", "uts", "ipc", "mnt", "cgroup", "user", "pid",
					     "time", NULL };
	char path[64], line[64];
	struct stat status;

	for (int i = 0; kinds[i]; i++) {
		snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
		if (stat(path, &status))
			continue;
		snprintf(line, sizeof line, "ns %lu\n", (unsigned long)status.st_ino);
		if (write(log_fd, line, strlen(line)) < 0)
			_exit(1);
	}
}

static void namespaces(unsigned n)
{
	pid_t pid = fork();
	char name[64];

	if (pid == 0) {
		prctl(PR_SET_NAME, "churn-spaces");
		unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWPID |
			(n % 2 ? 0x80 /* CLONE_NEWTIME */ : 0) | (n % 4 ? 0 : CLONE_NEWNET) |
			(n % 8 ? 0 : CLONE_NEWUSER));
		snprintf(name, sizeof name, "churn-%u", n);
		sethostname(name, strlen(name));
		pid = fork();
		if (pid == 0) {
			say_spaces();
			usleep(1000);
			_exit(0);
		}
		waitpid(pid, NULL, 0);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof *attr);
}

static void filters(unsigned n)
{
	struct bpf_insn one[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = n },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr map = { .map_type = n % 2 ? BPF_MAP_TYPE_HASH : BPF_MAP_TYPE_ARRAY,
			       .key_size = 4, .value_size = 8 + n % 64, .max_entries = 1 + n % 16 };
	union bpf_attr program = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2,
				   .insns = (uintptr_t)one, .license = (uintptr_t)"GPL" };
	struct rlimit much = { RLIM_INFINITY, RLIM_INFINITY };
	int fds[2];

	setrlimit(RLIMIT_MEMLOCK, &much);
	snprintf(map.map_name, sizeof map.map_name, "churn_m%u", n % 100000);
	snprintf(program.prog_name, sizeof program.prog_name, "churn_p%u", n % 100000);
	fds[0] = bpf(BPF_MAP_CREATE, &map);
	fds[1] = bpf(BPF_PROG_LOAD, &program);
	close(fds[0]);
	close(fds[1]);
}

static void timers(unsigned n)
{
	struct itimerspec soon = { .it_value = { n % 4, 1000000 + n % 1000 } };
	struct itimerval alarm = { .it_value = { 1000, 0 } };
	int fd = timerfd_create(n % 2 ? CLOCK_MONOTONIC : CLOCK_REALTIME, TFD_CLOEXEC);

	timerfd_settime(fd, 0, &soon, NULL);
	setitimer(ITIMER_REAL, &alarm, NULL);
	usleep(100);
	close(fd);
}

static void people(unsigned n)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_NAME, "churn-person");
		setresgid(61000 + n % 100, 61000 + n % 100, 61000 + n % 100);
		setresuid(61000 + n % 100, 61000 + n % 100, 61000 + n % 100);
		usleep(2000);
		_exit(0);
	}
	usleep(300);
	finish(pid);
}

static void parameters(unsigned n)
{
	put("/proc/sys/kernel/domainname", "churn-%u", n);
	put("/proc/sys/net/ipv4/ip_default_ttl", "%u", 64 + n % 2);
	put("/proc/sys/net/ipv4/ip_local_reserved_ports", "%u-%u", 50000 + n % 100, 50200 + n % 100);
	usleep(100);
}

static void records(unsigned n)
{
	put("/dev/kmsg", "<%u>churn: record %u %0*u", n % 8, n, (int)(n % 100), n);
	usleep(300);
}

static void modules(unsigned n)
{
	int fd = open("/tmp/churn.ko", O_RDONLY | O_CLOEXEC);

	syscall(n % 2 ? SYS_finit_module : SYS_delete_module, n % 2 ? (long)fd : (long)"veth",
		n % 2 ? (long)"" : O_NONBLOCK, 0);
	close(fd);
	usleep(5000);
}

static void logins(unsigned n)
{
	struct utmp record = { .ut_type = USER_PROCESS, .ut_pid = getpid() };
	int fd = open("/run/utmp", O_WRONLY | O_CLOEXEC);

	/* Behind the records that stay; a length that is no whole record, too. */
	snprintf(record.ut_user, sizeof record.ut_user, "churn-%u", n);
	snprintf(record.ut_line, sizeof record.ut_line, "pts/%u", 1000 + n % 1000);
	lseek(fd, 4 * sizeof record, SEEK_SET);
	if (write(fd, &record, sizeof record - n % 2 * 100) < 0 || ftruncate(fd, 4 * sizeof record))
		usleep(1);
	close(fd);
	usleep(200);
}

static void files(unsigned n)
{
	char path[64];

	for (int i = 0; i < 200; i++) {
		snprintf(path, sizeof path, "/tmp/churn/f%d-%u-%d", getpid(), n, i);
		close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	}
	for (int i = 0; i < 200; i++) {
		snprintf(path, sizeof path, "/tmp/churn/f%d-%u-%d", getpid(), n, i);
		unlink(path);
	}
}

static void (*const WORKERS[])(unsigned) = {
	mounts, here_mounts, groups, containers, network, namespaces, filters, timers, people,
	parameters, records, modules, logins, files,
};

int main(void)
{
	signal(SIGALRM, SIG_IGN);
	mkdir("/tmp/churn", 0777);
	put("/tmp/churn/run", "");
	log_fd = open("/tmp/churn/log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	for (unsigned i = 0; i < sizeof WORKERS / sizeof *WORKERS; i++)
		if (fork() == 0) {
			prctl(PR_SET_NAME, "churn");
			for (unsigned n = 0; going_on(); n++) {
				WORKERS[i](n);
				usleep(10000); /* or the guest's own word would take minutes */
			}
			_exit(0);
		}
	printf("ready\n");
	fflush(stdout);
	while (wait(NULL) > 0)
		;
	return 0;
}
