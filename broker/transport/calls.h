/* Reads, writes and waits as the kernel has them, for calls.py. */

#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define TENSORBUS_RIGHTS_MAX 16

/* Reads once; `descriptors` takes up to TENSORBUS_RIGHTS_MAX open files and `came` says how many. -1 sets errno. */
static inline ssize_t receive_once(int sock, struct iovec *parts, int count, int *descriptors, int *came)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(TENSORBUS_RIGHTS_MAX * sizeof(int))];
    } rights;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    *came = 0;
    if (descriptors == NULL && count == 1)
        return recv(sock, parts[0].iov_base, parts[0].iov_len, MSG_DONTWAIT);
    if (descriptors != NULL) {
        message.msg_control = rights.bytes;
        message.msg_controllen = sizeof rights.bytes;
    }
    ssize_t size = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0 || descriptors == NULL)
        return size;
    for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each != NULL; each = CMSG_NXTHDR(&message, each)) {
        if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS)
            continue;
        int number = (int)((each->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        if (number > TENSORBUS_RIGHTS_MAX - *came)
            number = TENSORBUS_RIGHTS_MAX - *came;
        memcpy(descriptors + *came, CMSG_DATA(each), (size_t)number * sizeof(int));
        *came += number;
    }
    return size;
}

static inline ssize_t send_once(int sock, struct iovec *parts, int count)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    if (count == 1)
        return send(sock, parts[0].iov_base, parts[0].iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    return sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Which of two descriptors are ready: bit 0 and bit 1. -1 sets errno. */
static inline int wait_once(int first, int events, int second, int timeout_ms)
{
    struct pollfd both[2] = {{.fd = first, .events = (short)events}, {.fd = second, .events = POLLIN}};
    int ready = poll(both, 2, timeout_ms);
    if (ready < 0)
        return -1;
    return (both[0].revents != 0) | (both[1].revents != 0) << 1;
}

/* Makes an eventfd readable. One that could make a write wait is not written to: its owner, who shares its flags, has
   taken O_NONBLOCK from it, and looks for itself. */
static inline void ring_once(int descriptor)
{
    uint64_t one = 1;
    int flags = fcntl(descriptor, F_GETFL);
    if (flags < 0 || !(flags & O_NONBLOCK))
        return;
    ssize_t written = write(descriptor, &one, sizeof one);
    (void)written;
}

static inline void set_errno(int number)
{
    errno = number;
}

static inline double monotonic_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
