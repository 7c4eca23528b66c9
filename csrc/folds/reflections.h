#pragma once

#include <string_view>

#include "folds/abs.h"
#include "folds/fold.h"
#include "folds/householder.h"
#include "folds/maxmin.h"

// The folds of one reflection, which have kernels of their own: kind, name, functor.
#define PYFOLD_REFLECTIONS(ROW)      \
  ROW(kAbs, "abs", AbsFold)          \
  ROW(kMaxMin, "maxmin", MaxMinFold) \
  ROW(kHouseholder, "householder", HouseholderFold)

namespace pyfold {

// In the order of FoldKind.
#define PYFOLD_ROW(kind, name, Fold) name,
constexpr std::string_view kReflectionNames[] = {PYFOLD_REFLECTIONS(PYFOLD_ROW)};
#undef PYFOLD_ROW

namespace {

// body(functor).
template <class Body>
inline auto with_reflection(FoldKind kind, Body&& body) {
  switch (kind) {
#define PYFOLD_ROW(row_kind, row_name, Fold) \
  case FoldKind::row_kind:                   \
    return body(Fold{});
    PYFOLD_REFLECTIONS(PYFOLD_ROW)
#undef PYFOLD_ROW
  }
  return body(AbsFold{});  // there is no other kind
}

// Values folded together.
inline int reflection_components(FoldKind kind) {
  return with_reflection(kind, [](auto fold) { return decltype(fold)::kComponents; });
}

// Numbers it needs for each unit.
inline int reflection_parameters(FoldKind kind) {
  return with_reflection(kind, [](auto fold) { return decltype(fold)::kParameters; });
}

}  // namespace
}  // namespace pyfold
