/* Preloaded into a server: notes, for every file, how much of it has been synced to disk.
 *
 * A kill spares the page cache, so only a power cut loses what was written and not yet synced. With
 * this note the test can cut a file back to what a power cut would have left.
 * The note of a file is SYNCED_SIZES/<inode>, its size in decimal.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int sync_and_note(int fd, const char *name)
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
        int note = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (note >= 0) {
            if (pwrite(note, text, length, 0) != length)
                unlink(path);
            close(note);
        }
    }
    return result;
}

int fsync(int fd) { return sync_and_note(fd, "fsync"); }
int fdatasync(int fd) { return sync_and_note(fd, "fdatasync"); }
