/*
 * tasks DISK: processes that differ in what /proc/PID/status, io and ns say of them; DISK is a
 * block device. Their parent writes "name pid" lines to /tmp/tasks.pids when all are in place.
 * tasks look: what the snapshot of the lab's agent has not of every task, each with its path in
 * front, both ended by a NUL.
 */
#include "child.h"
#include <dirent.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static const char *disk;

static void few_capabilities(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2] = { 0 };

	TRY(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE, 0, 0, 0));
	sets[0].permitted = 1u << CAP_NET_ADMIN | 1u << CAP_SYS_ADMIN | 1u << CAP_KILL;
	sets[0].effective = 1u << CAP_NET_ADMIN;
	sets[0].inheritable = 1u << CAP_NET_ADMIN | 1u << CAP_KILL;
	sets[1].permitted = sets[1].effective = 1u << (CAP_BPF - 32);
	TRY(syscall(SYS_capset, &header, sets));
	TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
}

static void filtered(void)
{
	struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { 1, &all };

	TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	for (int i = 0; i < 3; i++)
		TRY(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void strict(void)
{
	int ends[2];
	char byte;

	TRY(pipe(ends));
	ready();
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
	syscall(SYS_read, ends[0], &byte, 1);
}

static void in_group_of_its_own(void) { TRY(setpgid(0, 0)); }

static void on_terminal(void)
{
	char path[32];
	int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY), number = -1, unlock = 0, slave;

	TRY(ioctl(master, TIOCGPTN, &number));
	TRY(ioctl(master, TIOCSPTLCK, &unlock));
	snprintf(path, sizeof path, "/dev/pts/%d", number);
	setsid();
	slave = open(path, O_RDWR);
	TRY(ioctl(slave, TIOCSCTTY, 0));
	spawn("job", in_group_of_its_own);
}

static void on_serial_line(void)
{
	setsid();
	TRY(ioctl(open("/dev/ttyS0", O_RDWR), TIOCSCTTY, 0));
}

static void groups(int count)
{
	static gid_t ids[3000];

	for (int i = 0; i < count; i++)
		ids[i] = i == 0 ? 4294967294u : 5000u + i;
	TRY(setgroups(count, ids));
}

static void some_groups(void) { groups(16); }
static void many_groups(void) { groups(3000); }

static void file_ids(void)
{
	setfsgid(4321);
	setfsuid(1234);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	TRY(write(fd, text, strlen(text)));
	close(fd);
}

static void expendable(void) { put("/proc/self/oom_score_adj", "-517"); }
static void logged_in(void) { put("/proc/self/loginuid", "1000"); }

static void *uses_disk(void *unused)
{
	static char buffer[1 << 17] __attribute__((aligned(4096)));
	int fd = open(disk, O_RDWR | O_CLOEXEC);

	TRY(pread(fd, buffer, sizeof buffer, 1 << 20));
	TRY(pwrite(fd, buffer, sizeof buffer, 2 << 20));
	close(fd);
	return unused;
}

static void *rests(void *unused)
{
	uses_disk(NULL);
	TRY(mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
		 -1, 0) == MAP_FAILED ? -1 : 0);
	*(int *)unused = 1;
	rest();
	return NULL;
}

/* What it did itself, what a thread did that is gone, what one did that is still there. */
static void disk_user(void)
{
	static volatile int there;
	pthread_t thread;

	uses_disk(NULL);
	pthread_create(&thread, NULL, uses_disk, NULL);
	pthread_join(thread, NULL);
	pthread_create(&thread, NULL, rests, (void *)&there);
	while (!there)
		usleep(1000);
}

static void in_own_time(void)
{
	TRY(unshare(CLONE_NEWUSER | CLONE_NEWPID | 0x80 /* CLONE_NEWTIME */ | CLONE_NEWNS |
		    CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP));
	spawn("in-own-time", NULL);
}

static void deadline(void)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} attributes = { sizeof attributes, 6, 0, 0, 0, 10000000, 100000000, 100000000 };

	TRY(syscall(SYS_sched_setattr, 0, &attributes, 0));
}

static void half_of_the_cpus(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_CONF); cpu += 2)
		CPU_SET(cpu, &set);
	TRY(sched_setaffinity(0, sizeof set, &set));
}

static void show(const char *folder, const char *name, int link)
{
	static char data[65536];
	char path[400];
	ssize_t size;
	int fd;

	snprintf(path, sizeof path, "%s/%s", folder, name);
	if (link) {
		size = readlink(path, data, sizeof data);
	} else {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		size = fd < 0 ? -1 : read(fd, data, sizeof data);
		close(fd);
	}
	if (size < 0)
		return;
	printf("%s%c", path, 0);
	fwrite(data, 1, size, stdout);
	putchar(0);
}

static void look_at(const char *folder)
{
	static const char *const files[] = { "io", "loginuid", "oom_score_adj", "attr/current", NULL };
	static const char *const links[] = { "ns/cgroup", "ns/ipc", "ns/mnt", "ns/net", "ns/pid",
					     "ns/time", "ns/user", "ns/uts", NULL };

	for (int i = 0; files[i]; i++)
		show(folder, files[i], 0);
	for (int i = 0; links[i]; i++)
		show(folder, links[i], 1);
}

static void each(const char *folder, void (*use)(const char *path))
{
	struct dirent *entry;
	char path[300];
	DIR *entries = opendir(folder);

	while (entries && (entry = readdir(entries))) {
		if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
		use(path);
	}
	if (entries)
		closedir(entries);
}

static void look_at_process(const char *path)
{
	char threads[300];

	look_at(path);
	snprintf(threads, sizeof threads, "%.250s/task", path);
	each(threads, look_at);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*body)(void);
	} all[] = {
		{ "few-caps", few_capabilities }, { "filtered", filtered }, { "strict", strict },
		{ "on-terminal", on_terminal }, { "on-serial-line", on_serial_line },
		{ "some-groups", some_groups }, { "many-groups", many_groups },
		{ "file-ids", file_ids }, { "expendable", expendable }, { "logged-in", logged_in },
		{ "disk-user", disk_user }, { "unsharer", in_own_time }, { "deadline", deadline },
		{ "half-the-cpus", half_of_the_cpus },
	};
	FILE *pids;

	if (argc > 1 && !strcmp(argv[1], "look")) {
		each("/proc", look_at_process);
		return 0;
	}
	disk = argv[1];
	mkdir("/dev/pts", 0755);
	mount("devpts", "/dev/pts", "devpts", 0, NULL);
	pids = fopen("/tmp/tasks.starting", "we");
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		fprintf(pids, "%s %d\n", all[i].name, spawn(all[i].name, all[i].body));
	fclose(pids);
	rename("/tmp/tasks.starting", "/tmp/tasks.pids");
	rest();
}
