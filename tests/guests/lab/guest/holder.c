/*
 * holder: a process that holds one of each kind of file and mapping, one in a mount namespace of
 * its own, one in a changed root; their pids go to /tmp/holder.pids, in this order.
 * holder look: every descriptor of every process, as /proc has it: for each a decimal pid, fd,
 * mode, inode, device (major:minor in hexadecimal) and link, then fdinfo, each ended by a NUL.
 */
#include "lab.h"
#include <dirent.h>
#include <linux/bpf.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#define PAGE 4096
#define ODD_NAME "/tmp/odd file \x1b[7m\n\\ \xff"

static void written(int fd, const char *text)
{
	if (write(fd, text, strlen(text)) < 0)
		perror("holder: write");
}

static void plain_files(void)
{
	struct rlimit limit = { 8192, 8192 };
	int fd = open("/tmp/held", O_RDWR | O_CREAT | O_APPEND, 0600);

	written(fd, "hello");
	setrlimit(RLIMIT_NOFILE, &limit);
	fcntl(fd, F_DUPFD, 300);
	fcntl(fd, F_DUPFD_CLOEXEC, 5000);
	fd = open("/tmp/held", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	lseek(fd, 1L << 40, SEEK_SET);
	fd = open("/tmp/doomed", O_WRONLY | O_CREAT | O_SYNC, 0600);
	unlink("/tmp/doomed");
	open(ODD_NAME, O_RDWR | O_CREAT, 0600);
	open("/tmp", O_RDONLY | O_DIRECTORY);
	symlink("/nowhere", "/tmp/symlink");
	open("/tmp/symlink", O_PATH | O_NOFOLLOW);
	mkfifo("/tmp/fifo", 0600);
	open("/tmp/fifo", O_RDWR);
	open("/dev/null", O_RDWR);
	open("/dev/loop0", O_RDONLY);
	open("/proc/self/status", O_RDONLY);
	open("/mnt/bound/bin/program", O_RDONLY);
	open("/sys/fs/cgroup/cgroup.procs", O_RDONLY);
	mkdir("/tmp/gone-directory", 0700);
	open("/tmp/gone-directory", O_RDONLY | O_DIRECTORY);
	rmdir("/tmp/gone-directory");
}

static void anonymous_files(void)
{
	union bpf_attr map = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8,
			       .max_entries = 1 };
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/tmp/holder.socket" };
	char io_uring_parameters[256] = { 0 };
	int ends[2];
	sigset_t none;

	sigemptyset(&none);
	pipe2(ends, O_CLOEXEC | O_NONBLOCK);
	pipe2(ends, 0);
	socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
	socket(AF_INET, SOCK_DGRAM, 0);
	bind(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0), (void *)&address, sizeof address);
	eventfd(7, EFD_NONBLOCK);
	epoll_create1(EPOLL_CLOEXEC);
	timerfd_create(CLOCK_MONOTONIC, 0);
	signalfd(-1, &none, 0);
	inotify_init1(0);
	fanotify_init(0, O_RDONLY);
	syscall(SYS_pidfd_open, 1, 0);
	syscall(SYS_userfaultfd, 0);
	syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map);
	syscall(425 /* io_uring_setup */, 4, io_uring_parameters);
	syscall(430 /* fsopen */, "tmpfs", 0);
	open("/proc/self/ns/mnt", O_RDONLY);
	open("/proc/self/ns/net", O_RDONLY);
	open("/proc/1/ns/user", O_RDONLY);
	memfd_create("scratch", MFD_CLOEXEC);
}

static char *map(size_t pages, int protection, int flags, int fd, off_t offset)
{
	char *area = mmap(NULL, pages * PAGE, protection, flags, fd, offset);

	if (area == MAP_FAILED)
		perror("holder: mmap");
	else if (protection & PROT_WRITE)
		*area = 1;
	return area;
}

static void mappings(void)
{
	int rw = PROT_READ | PROT_WRITE, memory = memfd_create("mapped", 0);
	int fd = open("/tmp/doomed-map", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char *area;

	map(3, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	map(3, rw, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	map(2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	map(2, rw | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	area = map(4, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	prctl(0x53564d41 /* PR_SET_VMA */, 0, area, 4 * PAGE, "a name of its own");
	area = map(4, rw, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	prctl(0x53564d41, 0, area, 4 * PAGE, "shared");
	ftruncate(fd, 8 * PAGE);
	map(2, PROT_READ, MAP_SHARED, fd, 4 * PAGE);
	map(1, rw, MAP_PRIVATE, fd, 0);
	unlink("/tmp/doomed-map");
	ftruncate(memory, 2 * PAGE);
	map(2, rw, MAP_SHARED, memory, 0);
	fd = open(ODD_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ftruncate(fd, PAGE);
	map(1, PROT_READ, MAP_PRIVATE, fd, 0);
	fd = open("/tmp/over/file", O_RDONLY);
	if (fd >= 0)
		map(1, PROT_READ, MAP_PRIVATE, fd, 0);
	shmat(shmget(IPC_PRIVATE, 2 * PAGE, 0600), NULL, 0);
	/* Enough of them for a tree of several levels. */
	area = map(3000, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 3000; i += 2)
		mprotect(area + i * PAGE, PAGE, rw);
	if (!malloc(1 << 16))
		perror("holder: malloc");
}

static void own_mounts(void)
{
	unshare(CLONE_NEWNS);
	mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
	mkdir("/tmp/m n\t\\t\n", 0755);
	mount("odd \n\\dev", "/tmp/m n\t\\t\n", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mkdir("/tmp/read-only", 0755);
	mount("synced", "/tmp/read-only", "tmpfs", MS_SYNCHRONOUS | MS_DIRSYNC | MS_NOATIME, NULL);
	mount(NULL, "/tmp/read-only", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOATIME, NULL);
	mkdir("/tmp/lazy", 0755);
	mount("lazy", "/tmp/lazy", "tmpfs", MS_LAZYTIME | MS_NODIRATIME | 256 /* MS_NOSYMFOLLOW */,
	      NULL);
	mkdir("/tmp/sb-read-only", 0755);
	mount("frozen", "/tmp/sb-read-only", "tmpfs", MS_RDONLY | MS_STRICTATIME, NULL);
	mount("/tmp/held", "/tmp/fifo", NULL, MS_BIND, NULL);
	unlink("/tmp/held"); /* its bind mount stays, under the mount point's name */
	mount("/proc/self/ns/uts", "/tmp/namespace", NULL, MS_BIND, NULL);
	mount("again", "/tmp/lazy", "tmpfs", 0, NULL); /* on top of another */
}

static void changed_root(void)
{
	unshare(CLONE_NEWNS);
	mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
	mkdir("/mnt/container", 0755);
	mount("container", "/mnt/container", "tmpfs", 0, NULL);
	mkdir("/mnt/container/inner", 0755);
	mkdir("/mnt/container/inner/data", 0755);
	mkdir("/mnt/container/outer", 0755);
	mount("data", "/mnt/container/inner/data", "tmpfs", 0, NULL);
	mount("unseen", "/mnt/container/outer", "tmpfs", 0, NULL);
	chroot("/mnt/container/inner");
	chdir("/");
}

static pid_t start(void (*body)(void))
{
	struct pollfd answer = { .events = POLLIN };
	int ends[2];
	pid_t pid;

	pipe2(ends, O_CLOEXEC);
	pid = fork();
	if (pid == 0) {
		body();
		close(ends[0]);
		close(ends[1]);
		for (;;)
			pause();
	}
	close(ends[1]);
	answer.fd = ends[0];
	poll(&answer, 1, 300000);
	close(ends[0]);
	return pid;
}

static void everything(void)
{
	plain_files();
	anonymous_files();
	mappings();
}

static void look_at(const char *pid, const char *fd)
{
	char path[64], link[PAGE + 1], info[PAGE];
	struct stat stat_of;
	ssize_t length, got = 0;
	int file;

	snprintf(path, sizeof path, "/proc/%s/fd/%s", pid, fd);
	length = readlink(path, link, PAGE);
	if (length < 0 || stat(path, &stat_of))
		return;
	snprintf(path, sizeof path, "/proc/%s/fdinfo/%s", pid, fd);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file >= 0)
		got = read(file, info, sizeof info - 1);
	close(file);
	printf("%s%c%s%c%u%c%lu%c%02x:%02x%c", pid, 0, fd, 0, stat_of.st_mode, 0,
	       (unsigned long)stat_of.st_ino, 0, major(stat_of.st_dev), minor(stat_of.st_dev), 0);
	fwrite(link, 1, length, stdout);
	putchar(0);
	fwrite(info, 1, got > 0 ? got : 0, stdout);
	putchar(0);
}

static void look(void)
{
	struct dirent *process, *file;
	DIR *processes = opendir("/proc");

	while ((process = readdir(processes))) {
		char path[300];
		DIR *files;

		if (strspn(process->d_name, "0123456789") != strlen(process->d_name))
			continue;
		if (atoi(process->d_name) == getpid())
			continue;
		snprintf(path, sizeof path, "/proc/%s/fd", process->d_name);
		files = opendir(path);
		while (files && (file = readdir(files)))
			if (file->d_name[0] != '.')
				look_at(process->d_name, file->d_name);
		if (files)
			closedir(files);
	}
}

int main(int argc, char **argv)
{
	static char big[100000] = "BIG=";
	char *environment[] = { "FIRST=1", "EMPTY=", "NOEQUALS", "ODD=\x1b[31m\xff\ntwo=three", "=x",
				big, "LAST=end", NULL };
	FILE *pids;

	if (argc > 1 && strcmp(argv[1], "look") == 0) {
		look();
		return 0;
	}
	if (argc == 1) {
		memset(big + 4, 'b', sizeof big - 5);
		execve("/proc/self/exe", (char *[]){ argv[0], "hold", NULL }, environment);
	}
	for (int fd = 3; fd < 64; fd++)
		close(fd);
	pids = fopen("/tmp/holder.starting", "we");
	fprintf(pids, "%d ", start(everything));
	fprintf(pids, "%d ", start(own_mounts));
	fprintf(pids, "%d\n", start(changed_root));
	fclose(pids);
	rename("/tmp/holder.starting", "/tmp/holder.pids");
	for (;;)
		pause();
}
