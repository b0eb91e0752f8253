/*
 * Preloaded into agents (ld.so(8), LD_PRELOAD), and so into their QEMUs: post-copy works in the laboratory.
 *
 * QEMU before 8.1 asks for a userfaultfd by the system call, which the kernel grants to root alone, and root of
 * a user namespace, as in a laboratory, is not root. The device /dev/userfaultfd, which newer ones ask, goes by
 * the rights of its file (userfaultfd(2)). Where it cannot be had, all is as it would be.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)

static long from_device(long flags)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd;

    if (device < 0)
        return -1;
    fd = ioctl(device, USERFAULTFD_IOC_NEW, flags);
    close(device);
    return fd;
}

long syscall(long number, ...)
{
    static long (*next)(long, ...);
    long args[6], fd;
    va_list given;

    if (!next)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    va_start(given, number);
    for (int n = 0; n < 6; n++)
        args[n] = va_arg(given, long);
    va_end(given);
    if (number == SYS_userfaultfd && (fd = from_device(args[0])) >= 0)
        return fd;
    return next(number, args[0], args[1], args[2], args[3], args[4], args[5]);
}
