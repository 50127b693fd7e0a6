#include "module.h"

#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace sass {
namespace {

template <class T>
const T& at(const uint8_t* data, uint64_t offset) {
  return *reinterpret_cast<const T*>(data + offset);
}

uint64_t fnv1a(const uint8_t* data, uint64_t size) {
  uint64_t hash = 14695981039346656037ull;
  for (uint64_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 1099511628211ull;
  return hash;
}

namespace fs = std::filesystem;

// A file named after the content that it was made of, made if it is not there: `make` is given a name to write to.
template <class F>
fs::path cached(const void* content, uint64_t size, const char* suffix, F&& make) {
  const fs::path folder = fs::temp_directory_path() / ("aablur-sass-" + std::to_string(getuid()));
  fs::create_directories(folder);
  std::ostringstream name;
  name << std::hex << fnv1a(static_cast<const uint8_t*>(content), size);
  const fs::path path = folder / (name.str() + suffix);
  if (!fs::exists(path)) {
    const fs::path part = folder / (name.str() + "." + std::to_string(getpid()));  // other processes make it, too
    make(part);
    fs::rename(part, path);
  }
  return path;
}

// AABLUR_CUOBJDUMP names the program.
std::string cuobjdump(const std::string& arguments) {
  const char* program = std::getenv("AABLUR_CUOBJDUMP");
  return std::string(program ? program : "cuobjdump") + " " + arguments;
}

void write_file(const fs::path& path, const void* content, uint64_t size) {
  std::ofstream(path, std::ios::binary).write(static_cast<const char*>(content), std::streamsize(size));
}

template <class T>
T read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// What cuobjdump lists of the image, without the encodings' upper halves.
std::string list(const uint8_t* image, uint64_t size) {
  return read_file<std::string>(cached(image, size, ".listing", [&](const fs::path& part) {
    const fs::path cubin = part.string() + ".cubin";
    write_file(cubin, image, size);
    const std::string command = cuobjdump("-sass '" + cubin.string() + "'");
    FILE* pipe = popen(command.c_str(), "r");
    if (!pipe) throw Fault("cannot run " + command);
    std::ofstream out(part, std::ios::binary);
    for (char line[4096]; std::fgets(line, sizeof line, pipe);) {
      if (std::strchr(line, ';') || std::strstr(line, "Function : ") || std::strstr(line, "code for ")) out << line;
    }
    const int status = pclose(pipe);
    fs::remove(cubin);
    if (status != 0 || !out.flush()) throw Fault("failed: " + command);
  }));
}

}  // namespace

struct Module::Elf {
  const uint8_t* data;
  std::map<std::string, const Elf64_Shdr*> sections;
  std::string listing;
  std::map<std::string, std::string_view> functions;  // name -> its part of the listing
  int architecture = 0;

  explicit Elf(const void* image) : data(static_cast<const uint8_t*>(image)) {
    const auto& header = at<Elf64_Ehdr>(data, 0);
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) throw Fault("not a cubin");
    const auto* section = &at<Elf64_Shdr>(data, header.e_shoff);
    const char* names = reinterpret_cast<const char*>(data + section[header.e_shstrndx].sh_offset);
    uint64_t size = std::max(header.e_shoff + uint64_t(header.e_shnum) * sizeof(Elf64_Shdr),
                             header.e_phoff + uint64_t(header.e_phnum) * sizeof(Elf64_Phdr));
    for (int i = 0; i < header.e_shnum; ++i) {
      sections[names + section[i].sh_name] = section + i;
      if (section[i].sh_type != SHT_NOBITS) size = std::max(size, section[i].sh_offset + section[i].sh_size);
    }
    listing = list(data, size);
    constexpr std::string_view title = "Function : ";
    for (size_t from = listing.find(title); from != std::string::npos;) {
      from += title.size();
      const size_t end_of_name = listing.find('\n', from), next = listing.find(title, from);
      functions[listing.substr(from, end_of_name - from)] = std::string_view(listing).substr(
          end_of_name, (next == std::string::npos ? listing.size() : next) - end_of_name);
      from = next;
    }
    constexpr std::string_view arch = "code for sm_";
    const size_t found = listing.find(arch);
    if (found == std::string::npos) throw Fault("cuobjdump names no architecture");
    architecture = std::atoi(listing.c_str() + found + arch.size());
  }

  const Elf64_Shdr* find(const std::string& name) const {
    const auto it = sections.find(name);
    return it == sections.end() ? nullptr : it->second;
  }

  // The attributes that .nv.info sections are lists of: a format, a number, and 2 bytes of value or of a length.
  template <class F>
  void each_attribute(const std::string& section, F&& f) const {
    const Elf64_Shdr* header = find(section);
    if (!header) return;
    const uint8_t *p = data + header->sh_offset, *end = p + header->sh_size;
    while (p + 4 <= end) {
      constexpr uint8_t sized = 4;
      const uint8_t format = p[0], attribute = p[1];
      const uint32_t value = at<uint16_t>(p, 2);
      if (format == sized) f(attribute, p + 4, value);
      p += 4 + (format == sized ? value : 0);
    }
  }
};

Module::Module(const void* elf) : elf_(std::make_unique<Elf>(elf)) {}
Module::~Module() = default;

std::vector<std::string> Module::names() const {
  std::vector<std::string> out;
  for (const auto& [name, text] : elf_->functions) out.push_back(name);
  return out;
}

const Kernel& Module::kernel(const std::string& name) {
  std::unique_ptr<Kernel>& kernel = kernels_[name];
  if (kernel) return *kernel;
  const auto text = elf_->functions.find(name);
  if (text == elf_->functions.end()) throw Fault("no kernel " + name);
  auto made = std::make_unique<Kernel>();
  made->name = name;
  made->architecture = elf_->architecture;
  made->code = parse(text->second);
  if (const Elf64_Shdr* shared = elf_->find(".nv.shared." + name)) {
    // Of sm_90's, the first KiB is what the system keeps.
    made->static_shared = uint32_t(std::max<int64_t>(0, int64_t(shared->sh_size) - made->shared_begin()));
  }
  constexpr uint8_t parameter = 0x17, frame_size = 0x11, register_count = 0x2f;  // EIATTR_KPARAM_INFO, ...
  elf_->each_attribute(".nv.info." + name, [&](uint8_t attribute, const uint8_t* value, uint32_t) {
    if (attribute != parameter) return;
    const uint32_t ordinal = at<uint16_t>(value, 4), offset = at<uint16_t>(value, 6), rest = at<uint32_t>(value, 8);
    if (made->parameters.size() <= ordinal) made->parameters.resize(ordinal + 1);
    made->parameters[ordinal] = {offset, rest >> 18};
  });
  const Elf64_Shdr *symbols = elf_->find(".symtab"), *strings = elf_->find(".strtab");
  elf_->each_attribute(".nv.info", [&](uint8_t attribute, const uint8_t* value, uint32_t) {
    if (attribute != frame_size && attribute != register_count) return;
    const auto& symbol = at<Elf64_Sym>(elf_->data, symbols->sh_offset + at<uint32_t>(value, 0) * sizeof(Elf64_Sym));
    if (name != reinterpret_cast<const char*>(elf_->data + strings->sh_offset + symbol.st_name)) return;
    const uint32_t number = at<uint32_t>(value, 4);
    if (attribute == frame_size) made->frame = number;
    if (attribute == register_count) made->registers = int(number);
  });
  for (int bank = 1; bank <= 5; ++bank) {
    const std::string of_bank = ".nv.constant" + std::to_string(bank);
    for (const std::string& section : {of_bank, of_bank + "." + name})
      if (const Elf64_Shdr* header = elf_->find(section))
        made->banks[bank].assign(elf_->data + header->sh_offset, elf_->data + header->sh_offset + header->sh_size);
  }
  kernel = std::move(made);
  return *kernel;
}

std::vector<uint8_t> cubin_of_fat_binary(const void* wrapper, int architecture) {
  // The wrapper points to the binary: a header of 16 bytes with the size of what follows.
  const auto* fat = at<const uint8_t*>(static_cast<const uint8_t*>(wrapper), 8);
  constexpr uint32_t magic = 0xba55ed50;
  if (at<uint32_t>(fat, 0) != magic) throw Fault("not a fat binary");
  const uint64_t size = 16 + at<uint64_t>(fat, 8);
  const std::string arch = ".sm_" + std::to_string(architecture) + ".cubin";
  return read_file<std::vector<uint8_t>>(cached(fat, size, arch.c_str(), [&](const fs::path& part) {
    const fs::path folder = part.string() + ".d", binary = folder / "all.fatbin";
    fs::create_directory(folder);
    write_file(binary, fat, size);
    const std::string command = "cd '" + folder.string() + "' && " + cuobjdump("-xelf all all.fatbin > /dev/null");
    if (std::system(command.c_str()) != 0) throw Fault("failed: " + command);
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().string();
      const size_t length = arch.size();
      if (name.size() > length && name.compare(name.size() - length, length, arch) == 0) fs::rename(entry, part);
    }
    fs::remove_all(folder);
    if (!fs::exists(part)) throw Fault("a fat binary without code for sm_" + std::to_string(architecture));
  }));
}

}  // namespace sass
