// SPDX-License-Identifier: MIT
// Keeps what was found, and names the places in the source.

#include "machine.h"

#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <set>

namespace emu {

namespace {
std::vector<Report> found;
std::set<std::pair<Bug, Site>> places;
} // namespace

const char *name(Bug bug) {
    switch (bug) {
    case Bug::shared_race: return "race in shared memory";
    case Bug::global_race: return "race in global memory";
    case Bug::copy_in_flight: return "copy not waited for";
    case Bug::uninitialized_shared: return "uninitialised shared memory";
    case Bug::uninitialized_global: return "uninitialised global memory";
    case Bug::shared_out_of_bounds: return "outside of shared memory";
    case Bug::global_out_of_bounds: return "outside of global memory";
    case Bug::foreign_local: return "local variable of another thread";
    case Bug::misaligned: return "misaligned";
    case Bug::barrier_divergence: return "divergent barrier";
    case Bug::warp_mask: return "wrong mask";
    case Bug::warp_divergence: return "divergent warp operation";
    case Bug::deadlock: return "deadlock";
    case Bug::undefined_behavior: return "undefined behavior";
    }
    return "?";
}

const std::vector<Report> &reports() {
    return found;
}

void clear_reports() {
    found.clear();
    places.clear();
}

void report(Bug bug, Site site, const char *format, ...) {
    if (!places.insert({bug, site}).second)
        return;
    char what[400], who[60] = "";
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    if (current)
        std::snprintf(who, sizeof who, "thread %u of block %zu ", current->index,
                      (size_t)block.index);
    found.push_back({bug, std::string(who) + what, site});
}

std::string Report::text() const {
    return std::string(name(bug)) + ": " + what + (site ? ", at " + place(site) : "");
}

// From the program's debug information. The call is the instruction before its return address.
std::string place(Site site) {
    Dl_info info = {};
    if (!dladdr(site, &info))
        return "?";
    const size_t offset = (size_t)site - 1 - (size_t)info.dli_fbase;
    char command[4096], line[1024] = "";
    std::snprintf(command, sizeof command, "addr2line -s -e '%s' %#zx 2>/dev/null", info.dli_fname,
                  offset);
    if (FILE *pipe = popen(command, "r")) {
        if (!std::fgets(line, sizeof line, pipe))
            line[0] = 0;
        pclose(pipe);
    }
    std::string text = line;
    if (text.find('?') != std::string::npos || text.empty()) {
        std::snprintf(line, sizeof line, "%#zx", offset);
        return line;
    }
    return text.substr(0, text.find_first_of(" \n"));
}

} // namespace emu
