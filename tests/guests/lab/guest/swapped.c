/*
 * A process that has some pages of its arguments and of its environment swapped out.
 * Prints its pid, then for arguments and environment the first and the last address that went,
 * and how many of those pages /proc/self/pagemap shows as swapped.
 */
#include "lab.h"
#include <sys/mman.h>

#define PAGE 4096UL

static void page_out(char *from, char *to)
{
	uintptr_t start = ((uintptr_t)from + PAGE - 1) & -PAGE, end = (uintptr_t)to & -PAGE;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), swapped = 0;
	uint64_t entry;

	for (int attempt = 0; attempt < 100 && swapped < (int)((end - start) / PAGE); attempt++) {
		if (madvise((void *)start, end - start, 21 /* MADV_PAGEOUT */))
			fprintf(stderr, "swapped: madvise: %m\n");
		swapped = 0;
		for (uintptr_t at = start; at < end; at += PAGE)
			if (pread(fd, &entry, 8, at / PAGE * 8) == 8)
				swapped += entry >> 62 & 1;
		usleep(20000);
	}
	close(fd);
	printf("%lu %lu %d\n", start, end, swapped);
}

int main(int argc, char **argv, char **envp)
{
	static char a[9000], b[9000], c[9000], e[14000] = "BIG=";

	if (argc == 1) {
		memset(a, 'a', sizeof a - 1);
		memset(b, 'b', sizeof b - 1);
		memset(c, 'c', sizeof c - 1);
		memset(e + 4, 'e', sizeof e - 5);
		execve("/proc/self/exe", (char *[]){ "swapped", a, b, c, "end", NULL },
		       (char *[]){ "FIRST=1", e, "LAST=2", NULL });
	}
	printf("%d\n", getpid());
	page_out(argv[1] + 5000, argv[3] + 100); /* the end of a, all of b, the beginning of c */
	page_out(envp[1], envp[2]);
	fflush(stdout);
	fclose(stdout);
	for (;;)
		pause();
}
