// `run_units` on threads of its own: a thread for each task.

#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "cpu.h"

namespace {

struct Pool {
  int64_t size;
  std::vector<std::thread> threads;

  int64_t num_threads() const { return size; }
  template <typename Task>
  void Schedule(Task task) {
    threads.emplace_back(std::move(task));
  }
  ~Pool() {
    for (std::thread& thread : threads) thread.join();
  }
};

bool sleeps(pid_t thread) {
  std::ifstream stat("/proc/self/task/" + std::to_string(thread) + "/stat");
  const std::string text((std::istreambuf_iterator<char>(stat)), {});
  return text.substr(text.rfind(')') + 2, 1) == "S";
}

}  // namespace

// Whether the caller sleeps while the other thread's unit runs; gives up after ten seconds.
extern "C" bool caller_sleeps() {
  const pid_t caller = syscall(SYS_gettid);
  std::atomic<bool> other_runs{false}, slept{false};
  {
    Pool pool{2, {}};
    itemwise::run_units(pool, 2, [&](int64_t) {
      if (syscall(SYS_gettid) == caller) {
        while (!other_runs) std::this_thread::yield();
        return;
      }
      other_runs = true;
      const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
      while (!(slept = sleeps(caller)) && std::chrono::steady_clock::now() < until)
        std::this_thread::yield();
    });
  }
  return slept;
}

// Units not run exactly once, over many rounds whose last unit ends at about the end of the spin.
extern "C" int64_t wrong_units(int64_t rounds) {
  int64_t wrong = 0;
  for (int64_t round = 0; round < rounds; ++round) {
    std::atomic<int> times[8] = {};
    Pool pool{4, {}};
    itemwise::run_units(pool, 8, [&](int64_t i) {
      const auto until = std::chrono::steady_clock::now() + itemwise::SPIN * (round % 3) / 2;
      while (std::chrono::steady_clock::now() < until) {
      }
      ++times[i];
    });
    for (const auto& count : times) wrong += count != 1;
  }
  return wrong;
}
