// decode_steps on a CPU, its source or what it was compiled to (ptx.py): see device.cuh.
#include KERNEL

namespace fibers {

static const Arguments *given;

static void thread_of_a_block() {
  decode_steps(*given);
  here->done = true;
  ++here->block->done;
  progress = true;
  yield();
}

}  // namespace fibers

// 0 if all blocks came to the end, 1 if they wait for each other for ever, 2 if a copy to a block's memory outlived it.
extern "C" int run(const Arguments *arguments, unsigned seed) {
  using namespace fibers;
  given = arguments;
  chance.seed(seed);
  std::vector<Fellows> blocks(GRID);
  std::vector<Fiber> all(GRID * THREADS);
  for (unsigned b = 0; b < GRID; ++b) {
    blocks[b].index = b;
    blocks[b].shared = static_cast<unsigned char *>(std::aligned_alloc(128, SHARED_BYTES));
    memset(blocks[b].shared, 0xFF, SHARED_BYTES);
  }
  constexpr size_t STACK = 1 << 17;
  for (unsigned i = 0; i < all.size(); ++i) {
    Fiber &fiber = all[i];
    fiber.block = &blocks[i / THREADS];
    fiber.thread = i % THREADS;
    fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.beginning);
    fiber.beginning.uc_stack.ss_sp = fiber.stack.get();
    fiber.beginning.uc_stack.ss_size = STACK;
    makecontext(&fiber.beginning, thread_of_a_block, 0);
  }
  unsigned idle = 0;
  int status = 0;
  // One block for a while, its warps in any order or one of them alone: they run as far ahead of others as they can.
  for (bool done = false; !done;) {
    const unsigned block = chance() % GRID;
    const bool alone = chance() % 2;
    unsigned warp = chance() % (THREADS / 32);
    for (unsigned turns = 1 + chance() % 64; turns; --turns) {
      progress = false;
      if (!alone) warp = chance() % (THREADS / 32);
      for (unsigned lane = 0; lane < 32; ++lane) {
        Fiber &fiber = all[block * THREADS + warp * 32 + lane];
        if (!fiber.done) resume(fiber);
      }
      idle = progress ? 0 : idle + 1;
    }
    done = true;
    for (Fellows &b : blocks) done = done && b.done == THREADS;
    if (idle > 100 * GRID * THREADS) {
      status = 1;
      break;
    }
  }
  for (Fellows &b : blocks) {
    if (!status && !b.copies.empty()) status = 2;
    std::free(b.shared);
  }
  return status;
}
