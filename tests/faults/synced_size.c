/* Preloaded into a server: records the synced size of every file.
 *
 * A kill keeps the page cache; only a power cut loses data that was written and not synced. With the
 * recorded size, a test can truncate a file as a power cut would.
 * The size of a file is recorded in SYNCED_SIZES/<inode>, in decimal.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int sync_and_record(int fd, const char *name)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat before;
    int known = fstat(fd, &before) == 0 && S_ISREG(before.st_mode);
    int result = real(fd);
    const char *folder = getenv("SYNCED_SIZES");
    if (result == 0 && known && folder) {
        char path[4096], text[32];
        snprintf(path, sizeof path, "%s/%lu", folder, (unsigned long)before.st_ino);
        int length = snprintf(text, sizeof text, "%020lld", (long long)before.st_size);
        int record = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (record >= 0) {
            if (pwrite(record, text, length, 0) != length)
                unlink(path);
            close(record);
        }
    }
    return result;
}

int fsync(int fd) { return sync_and_record(fd, "fsync"); }
int fdatasync(int fd) { return sync_and_record(fd, "fdatasync"); }
