/* Says of each namespace file (/proc/PID/ns/TYPE): "FILE USERNS PARENT OWNER", - for none. */
#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static void related(int fd, unsigned long request)
{
	struct stat about;
	int other = ioctl(fd, request);

	if (other >= 0 && !fstat(other, &about))
		printf(" %lu", (unsigned long)about.st_ino);
	else
		printf(" -");
	if (other >= 0)
		close(other);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		int fd = open(argv[i], O_RDONLY);
		uid_t owner;

		if (fd < 0)
			continue;
		printf("%s", argv[i]);
		related(fd, NS_GET_USERNS);
		related(fd, NS_GET_PARENT);
		if (ioctl(fd, NS_GET_OWNER_UID, &owner))
			printf(" -\n");
		else
			printf(" %u\n", owner);
		close(fd);
	}
	return 0;
}
