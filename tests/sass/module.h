// A cubin: its kernels' code, parameters and constants, as its ELF sections and cuobjdump's listing give them.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "instruction.h"

namespace sass {

struct Parameter {
  uint32_t offset = 0, size = 0;  // in the constant bank, from the first parameter
};

struct Kernel {
  std::string name;
  int architecture = 90;
  std::vector<Parameter> parameters;  // in their order
  int registers = 0;
  uint32_t static_shared = 0, frame = 0;      // bytes: of shared memory in a block, of the stack in a thread
  std::map<int, std::vector<uint8_t>> banks;  // constant banks, other than that of the parameters
  std::vector<Instruction> code;

  uint32_t first_parameter() const { return architecture >= 90 ? 0x210 : 0x160; }  // in constant bank 0
  uint32_t shared_begin() const { return architecture >= 90 ? 0x400 : 0; }         // what lies before is the system's
};

class Module {
 public:
  explicit Module(const void* elf);
  ~Module();
  // Parsed when first asked for. Throws Fault where there is no such kernel.
  const Kernel& kernel(const std::string& name);
  std::vector<std::string> names() const;

 private:
  struct Elf;
  std::unique_ptr<Elf> elf_;
  std::map<std::string, std::unique_ptr<Kernel>> kernels_;
};

// The ELF image for an architecture inside of what __cudaRegisterFatBinary is given, compressed or not.
std::vector<uint8_t> cubin_of_fat_binary(const void* wrapper, int architecture = 90);

}  // namespace sass
