/* A process with timers of every kind, far away in time; a child shares its descriptors. */
#include "lab.h"
#include <signal.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>

/* Relative ones of CLOCK_REALTIME would become monotonic. */
static struct timespec later(clockid_t clock, int seconds)
{
	struct timespec when;

	clock_gettime(clock, &when);
	when.tv_sec += seconds;
	return when;
}

static void posix(clockid_t clock, int seconds)
{
	struct itimerspec when = { .it_value = later(clock, seconds) };
	timer_t timer;

	if (timer_create(clock, NULL, &timer) || timer_settime(timer, TIMER_ABSTIME, &when, NULL))
		perror("timers: posix");
}

static void descriptor(clockid_t clock, int seconds)
{
	struct itimerspec when = { .it_value = later(clock, seconds) };

	if (timerfd_settime(timerfd_create(clock, 0), TFD_TIMER_ABSTIME, &when, NULL))
		perror("timers: timerfd");
}

int main(void)
{
	struct itimerval real = { .it_value.tv_sec = 70000 };
	struct timespec nap = { .tv_sec = 80000 };

	descriptor(CLOCK_MONOTONIC, 71000);
	descriptor(CLOCK_REALTIME, 72000);
	descriptor(CLOCK_BOOTTIME, 73000);
	if (fork() == 0)
		for (;;)
			pause();
	setitimer(ITIMER_REAL, &real, NULL);
	posix(CLOCK_MONOTONIC, 74000);
	posix(CLOCK_REALTIME, 75000);
	printf("ready\n");
	fflush(stdout);
	close(1);
	for (;;)
		nanosleep(&nap, NULL);
}
